"""Which addresses belong to the public internet: a list of our own.

`ipaddress.is_global` depends on Python's version (192.0.0.0/24, 3fff::/20), and knows nothing of
addresses that are public by their number and private by what answers there, such as Azure's
168.63.129.16. The networks are those of IANA's registries of special-purpose addresses,
https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as of
November 2025. Those that are reachable from everywhere but serve the network itself (relays,
anycast sinks) are left out too: nobody's images lie there.
"""

import ipaddress

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers; metadata of Alibaba and Tencent clouds
        "127.0.0.0/8",  # this machine
        "168.63.129.16/32",  # Azure: metadata, DNS and the agent's secrets
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments; metadata of Oracle's cloud
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarks, ORCHID, relays
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_ISATAP_MARKS = frozenset({0x00005EFE, 0x02005EFE})


def is_public(address: IpAddress) -> bool:
    """Whether an address is of the public internet, and not of a network around this machine.

    An IPv6 address that stands for an IPv4 address is what that one is.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_IPV4)
    if address in _IPV4_MAPPED or address in _NAT64:
        return is_public(_ipv4(int(address)))
    if address not in _UNICAST_IPV6 or any(address in network for network in _NOT_PUBLIC_IPV6):
        return False
    if address in _SIX_TO_FOUR and not is_public(_ipv4(int(address) >> 80)):
        return False
    is_isatap = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP_MARKS
    return not is_isatap or is_public(_ipv4(int(address)))


def _ipv4(number: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(number & 0xFFFFFFFF)

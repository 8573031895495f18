"""Configs of kohya's sd-scripts, turned into ours; what differs is said, and nothing is dropped.

Facts: kohya-ss/sd-scripts at commit 48d368fa (``train_network.py``, ``networks/lora.py``, and
``train_util.py`` and ``config_util.py`` in ``library``). None of its code is used.
"""

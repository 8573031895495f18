"""What tests ask of the list of datasets."""


def names_of(datasets):
    """The names of all stored datasets."""
    return tuple(one.name for one in datasets.details.all())

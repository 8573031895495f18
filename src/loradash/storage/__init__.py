"""The object store: datasets, weights and images behind one small set of verbs."""

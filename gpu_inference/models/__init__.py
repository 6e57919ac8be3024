"""Models as they lie in a folder and as they are used: manifests, signatures, routes, comparisons, caches."""

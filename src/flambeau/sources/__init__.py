"""From a source to its bundle: recognise the source, find its bundle in the cache, or have it built."""

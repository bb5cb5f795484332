"""Everything that can be set, once: name, default, meaning and bounds; and where its value came from."""

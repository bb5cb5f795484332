"""Every setting, defined once: name, default, meaning and bounds; and where its value came from."""

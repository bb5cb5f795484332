"""The page, the dashboard and the document of the interface: what a browser is shown."""

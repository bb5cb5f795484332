"""What runs a service elsewhere: manifests for Kubernetes, and a compose file. No server imports this room."""

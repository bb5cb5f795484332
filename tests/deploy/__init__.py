"""Real images and containers, by `make test-deploy`: buildah, podman and runc, with neither Docker nor a registry."""

"""What runs a service elsewhere: images, manifests, bundles that are fetched. No server imports this room.

`flambeau package`: `requirements` finds the packages that serving a bundle needs, `hashes` their hashes, `wheel` packs
this Flambeau, `folder` writes it all beside a Dockerfile, `sbom` lists it, and `image` has a builder of this machine
build it. `flambeau deploy`: `needs` finds what a bundle takes, and `manifests` prints what runs its image. `flambeau
fetch`: `fetching`.
"""

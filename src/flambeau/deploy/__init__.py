"""From a bundle to a folder that builds a container image: `flambeau package`.

`requirements` finds the packages that serving the bundle needs, `hashes` their hashes, `wheel` packs this Flambeau,
`folder` writes it all beside a Dockerfile, `sbom` lists it, and `image` has a builder of this machine build it. No
server imports this room.
"""

#!/usr/bin/env bash
# Fetches what is kept of other people's in src/flambeau/ui/vendor, from npm, by exact version and hash.
# Run it to take a newer version: change the two lines, run it, look at the page /docs, commit.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGE=swagger-ui-dist@5.35.0
INTEGRITY=sha512-U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive=$work/$(npm pack "$PACKAGE" --silent --pack-destination "$work")
found=sha512-$(openssl dgst -sha512 -binary "$archive" | base64 -w0)
[ "$found" = "$INTEGRITY" ] || { echo "$PACKAGE has the hash $found, and not $INTEGRITY" >&2; exit 1; }
tar -xzf "$archive" -C "$work"
for name in swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt swagger-ui.css LICENSE NOTICE; do
    cp "$work/package/$name" src/flambeau/ui/vendor/swagger-ui/
done

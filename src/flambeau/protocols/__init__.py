"""Other people's requests to ours and back: pure functions over plain values, whatever the server."""

"""One small application per peer, written as its own guide would have it. Each runs in the peer's environment."""

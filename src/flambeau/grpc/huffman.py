"""The Huffman code of HTTP/2's headers (RFC 7541, appendix B), decoded four bits at a time.

The code is canonical: shorter codes come first, and those of the same length in the order of their symbols. So the
lengths are all that is written here. Nothing is encoded: what this server sends is short and plain.
"""

import functools

_LENGTHS = (
    "dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6cad677777777777777777777"
    "77878djde6f56565666577666567655677777fbedskmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmo"
    "lmnnllmlnmnnkmmmnmmnqqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrqu"
)
"""The bits of each symbol's code in base 36, the end of the string last."""

_END = 256
_LONGEST_PADDING = 7  # bits, all of them ones

_Step = tuple[int, int]
"""Where a half byte leads, and the symbol that it completes, or -1: no code is shorter than five bits."""

_INVALID = -1


def decoded(data: bytes) -> bytes:
    """The text of a string. Raises `ValueError` if it is not encoded as the RFC has it."""
    steps, may_end = _table()
    found = bytearray()
    node = 0
    for byte in data:
        node, symbol = steps[node << 4 | byte >> 4]
        if symbol >= 0:
            found.append(symbol)
        node, symbol = steps[node << 4 | byte & 15]
        if symbol >= 0:
            found.append(symbol)
        if node < 0:
            break
    if node < 0 or node not in may_end:
        raise ValueError("a string of the headers is not in the Huffman code")
    return bytes(found)


@functools.cache
def _table() -> tuple[list[_Step], frozenset[int]]:
    """The steps of every inner node of the code's tree, sixteen each, and the nodes in which a string may end.

    Behind them lie those of the node -1, which leads nowhere else, as a negative index finds them.
    """
    children = _tree()
    steps = []
    for node in range(len(children)):
        for half in range(16):
            at, symbol = node, -1
            for bit in (8, 4, 2, 1):
                below = children[at][1 if half & bit else 0]
                if below < 0:  # a leaf: -1 - symbol
                    if below == -1 - _END:
                        at = _INVALID
                        break
                    symbol, at = -1 - below, 0
                else:
                    at = below
            steps.append((at, symbol))
    steps += [(_INVALID, -1)] * 16
    may_end, at = {0}, 0
    for _ in range(_LONGEST_PADDING):
        at = children[at][1]
        may_end.add(at)
    return steps, frozenset(may_end)


def _tree() -> list[list[int]]:
    """The inner nodes of the tree, each with what a 0 and a 1 lead to: another one, or -1 - symbol."""
    children = [[0, 0]]
    code = before = 0
    for symbol in sorted(range(_END + 1), key=lambda each: (int(_LENGTHS[each], 36), each)):
        length = int(_LENGTHS[symbol], 36)
        code <<= length - before
        before, at = length, 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not children[at][bit]:
                children[at][bit] = len(children)
                children.append([0, 0])
            at = children[at][bit]
        children[at][code & 1] = -1 - symbol
        code += 1
    return children

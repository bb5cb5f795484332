"""HPACK (RFC 7541): the headers of HTTP/2 read from their blocks, and written.

A connection's reader keeps the table that its blocks refer to. What this server sends refers to no table: its blocks
are the same bytes on every connection. It knows neither frames nor what headers mean.
"""

from collections import deque

from flambeau.grpc import huffman

Field = tuple[bytes, bytes]
"""A header's name and value."""

MOST_TABLE = 4096
"""Bytes of the table that a client may use, which is what HTTP/2 begins with."""

_PER_FIELD = 32  # bytes that the RFC adds to each field's name and value
_LONGEST_NUMBER = 4  # bytes after the first
_MOST_RESIZED = 2  # changes of the table's size: to its least, and to what it is from now on
_FAR_TOO_MUCH = 4  # times `most_bytes`, up to which a block is read for the sake of the table

_STATIC: tuple[Field, ...] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""),
    (b"cache-control", b""), (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""),
    (b"content-length", b""), (b"content-location", b""), (b"content-range", b""), (b"content-type", b""),
    (b"cookie", b""), (b"date", b""), (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""),
    (b"host", b""), (b"if-match", b""), (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""),
    (b"if-unmodified-since", b""), (b"last-modified", b""), (b"link", b""), (b"location", b""),
    (b"max-forwards", b""), (b"proxy-authenticate", b""), (b"proxy-authorization", b""), (b"range", b""),
    (b"referer", b""), (b"refresh", b""), (b"retry-after", b""), (b"server", b""), (b"set-cookie", b""),
    (b"strict-transport-security", b""), (b"transfer-encoding", b""), (b"user-agent", b""), (b"vary", b""),
    (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip
"""Appendix A: what every connection's table begins with, from 1 on."""

_NAMES = {name: place for place, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


class HeaderReader:
    """Reads the blocks of one connection, in their order.

    `changes` counts the changes of its table: a block that was read without one means the same until the next.
    """

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: of the names and values of one block, counted as the RFC counts a table."""
        self.changes = 0
        self._most = most_bytes
        self._entries: deque[Field] = deque()  # the newest first
        self._size = 0
        self._limit = MOST_TABLE

    def read(self, block: bytes) -> list[Field] | None:
        """The fields of a block; `None` if they are more than `most_bytes`, though the table is as they say.

        Raises `ValueError`: then the connection cannot go on, because nobody knows what its table is.
        """
        found: list[Field] = []
        place, end, size, resized = 0, len(block), 0, 0
        try:
            while place < end:
                byte = block[place]
                if byte & 128:
                    number, place = _number(block, place, 7)
                    field = self._entry(number)
                elif byte & 64:
                    field, place = self._literal(block, place, 6)
                    self._add(field)
                elif byte & 32:
                    if found or size:
                        raise ValueError("the table's size changes within a block")
                    resized += 1
                    if resized > _MOST_RESIZED:
                        raise ValueError("the table's size changes again and again")
                    number, place = _number(block, place, 5)
                    self._resize(number)
                    continue
                else:
                    field, place = self._literal(block, place, 4)
                size += len(field[0]) + len(field[1]) + _PER_FIELD
                if size <= self._most:
                    found.append(field)
                elif size > _FAR_TOO_MUCH * self._most:  # a byte may stand for kilobytes, and costs its time
                    raise ValueError("a block of headers has far more in it than it may")
        except IndexError:
            raise ValueError("a block of headers ends within a field") from None
        return found if size <= self._most else None

    def _literal(self, block: bytes, place: int, bits: int) -> tuple[Field, int]:
        number, place = _number(block, place, bits)
        if number:
            name = self._entry(number)[0]
        else:
            name, place = _string(block, place)
        value, place = _string(block, place)
        return (name, value), place

    def _entry(self, number: int) -> Field:
        if 0 < number <= len(_STATIC):
            return _STATIC[number - 1]
        if not 0 <= number - len(_STATIC) - 1 < len(self._entries):
            raise ValueError("a block of headers refers to what the table does not have")
        return self._entries[number - len(_STATIC) - 1]

    def _add(self, field: Field) -> None:
        self.changes += 1
        self._entries.appendleft(field)
        self._size += len(field[0]) + len(field[1]) + _PER_FIELD
        self._shrink()

    def _resize(self, limit: int) -> None:
        if limit > MOST_TABLE:
            raise ValueError(f"the table of headers may not have {limit} bytes")
        self.changes += 1
        self._limit = limit
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + _PER_FIELD


def _number(block: bytes, place: int, bits: int) -> tuple[int, int]:
    """A number that begins in the last `bits` of a byte, and the place behind it."""
    most = (1 << bits) - 1
    found = block[place] & most
    place += 1
    if found < most:
        return found, place
    for shift in range(0, 7 * _LONGEST_NUMBER, 7):
        byte = block[place]
        place += 1
        found += (byte & 127) << shift
        if byte < 128:
            return found, place
    raise ValueError("a block of headers has too large a number")


def _string(block: bytes, place: int) -> tuple[bytes, int]:
    encoded = block[place] & 128
    length, place = _number(block, place, 7)
    end = place + length
    if end > len(block):
        raise IndexError
    text = block[place:end]
    return huffman.decoded(text) if encoded else text, end


def written(fields: list[Field]) -> bytes:
    """The block of these fields, which asks nobody to keep them in a table."""
    found = bytearray()
    for name, value in fields:
        number = _NAMES.get(name, 0)
        if number and _STATIC[number - 1 :][:7].count((name, value)):  # those of a name stand together
            found.append(128 | number + _STATIC[number - 1 :].index((name, value)))
            continue
        _put_number(found, number, 4)
        if not number:
            _put_number(found, len(name), 7)
            found += name
        _put_number(found, len(value), 7)
        found += value
    return bytes(found)


def _put_number(found: bytearray, number: int, bits: int) -> None:
    """Append a number whose first byte has only zeros before its last `bits`."""
    most = (1 << bits) - 1
    if number < most:
        found.append(number)
        return
    found.append(most)
    number -= most
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)

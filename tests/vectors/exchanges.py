"""Whole conversations with a board that has just started: each request's bytes on the line, and its answer's."""

from __future__ import annotations

from plain import (
    TYPES,
    Loops,
    Tile,
    body,
    gather_payload,
    line,
    little,
    mvm_payload,
    program_payload,
    trims_payload,
    vectors_out,
    write_payload,
)

Step = dict[str, object]

OK, BAD_LENGTH, OUT_OF_RANGE, BAD_VALUE, NOT_PROGRAMMED = 0, 3, 4, 5, 6
WEIGHTS = [[1, -2, 3], [0, 127, -127], [5, 0, -6], [-7, 8, 9]]
TILE, NO_TILE = 1, 0xFFFF


class Conversation:
    """Notes down requests to a board whose converter has `output_bits`, and what it has to answer."""

    def __init__(self, name: str, output_bits: int = 0) -> None:
        self.name, self.bits, self.steps = name, output_bits, list[Step]()
        self.tile = Tile(WEIGHTS)

    def ask(
        self, says: str, kind: str, payload: bytes, answer: bytes = b"", status: int = OK, tile: int = TILE
    ) -> None:
        sequence = len(self.steps) + 1
        request = line(body(TYPES[kind], sequence, tile, 0, payload))
        answered = line(body(TYPES[kind] | 0x80, sequence, tile, status, answer))
        said: Step = {"exchange": self.name, "output_bits": self.bits, "says": says}
        self.steps.append({**said, "request": request.hex(), "answer": answered.hex()})

    def program(self) -> None:
        self.ask("the last two rows", "PROGRAM", program_payload(WEIGHTS[2:], 5, rows=4, first=2), little(2, 2))
        self.refuse("a product before all rows are there", "MVM", mvm_payload([[1]]), NOT_PROGRAMMED)
        self.ask("the first two rows", "PROGRAM", program_payload(WEIGHTS[:2], 5, rows=4), little(0, 2))

    def trim(self, offset: list[int], gain: list[int]) -> None:
        self.tile.offset, self.tile.gain = offset, gain
        self.ask("trims of all columns", "SET_TRIM", trims_payload(offset, gain))
        self.ask("and back", "GET_TRIM", b"", trims_payload(offset, gain))

    def mvm(
        self, says: str, inputs: list[list[int]], input_format: int = 0, output_format: int = 0, **part: int
    ) -> None:
        answer = self.multiplied(inputs, output_format, part)
        self.ask(says, "MVM", mvm_payload(inputs, input_format, output_format, **part), answer)

    def gather(
        self,
        says: str,
        inputs: list[list[int]],
        base: int,
        loops: tuple[Loops, Loops],
        output_format: int = 0,
        **part: int,
    ) -> None:
        """`inputs`: what the loops find in the buffer."""
        answer = self.multiplied(inputs, output_format, part)
        self.ask(says, "MVM_GATHER", gather_payload(base, *loops, output_format, **part), answer)

    def multiplied(self, inputs: list[list[int]], output_format: int, part: dict[str, int]) -> bytes:
        outputs, saturated = self.tile.multiply(inputs, **part, bits=self.bits, output_format=output_format)
        return little(saturated, 4) + vectors_out(outputs, output_format, self.bits)

    def refuse(self, says: str, kind: str, payload: bytes, status: int = OUT_OF_RANGE) -> None:
        self.ask(says, kind, payload, b"", status)


def parts() -> list[Step]:
    talk = Conversation("parts of a tile")
    talk.program()
    talk.mvm("two rows and two columns", [[2, -1], [0, 3]], output_format=1, first_row=1, first_col=1, cols=2)
    talk.mvm("all columns behind one", [[2, -1], [0, 3]], first_row=1, first_col=1)
    talk.mvm("the first cell", [[9]], cols=1)
    talk.mvm("the last cell", [[9]], first_row=3, first_col=2, cols=1)
    talk.mvm("the whole tile by its size", [[1, 2, 3, 4]], cols=3)
    talk.mvm("the whole tile", [[1, 2, 3, 4]])
    talk.mvm("an odd number of int4", [[-8, 7, -1], [1, 0, 3]], 1, 1, first_row=1, first_col=2, cols=1)
    talk.mvm("zeros skipped", [[0, 100, 0], [1, 0, -3]], 2, 1, first_row=1, cols=2)
    talk.ask("no vector", "MVM", mvm_payload([], first_row=2, first_col=1, cols=1, rows=2), little(0, 4))
    talk.trim([100, -1, -32768], [16384, 24577, 65535])
    talk.mvm("the columns' own trims", [[2, -1], [0, 3]], first_row=1, first_col=1, cols=2)
    talk.mvm("clipped values of these columns alone", [[127, 127]], 0, 1, first_row=2, first_col=0, cols=2)
    refuse_parts(talk)
    talk.mvm("nothing has changed", [[2, -1], [0, 3]], first_row=1, first_col=1)
    return talk.steps


def refuse_parts(talk: Conversation) -> None:
    one, two = [[1]], [[1, 2]]
    talk.refuse("no row", "MVM", mvm_payload([[]]))
    talk.refuse("no row and no vector", "MVM", mvm_payload([], rows=0))
    talk.refuse("a row too many", "MVM", mvm_payload(two, first_row=3))
    talk.refuse("a row behind the matrix", "MVM", mvm_payload(one, first_row=4))
    talk.refuse("a column too many", "MVM", mvm_payload(one, first_col=2, cols=2))
    talk.refuse("a column behind the matrix", "MVM", mvm_payload(one, first_col=3, cols=1))
    talk.refuse("all columns behind the last", "MVM", mvm_payload(one, first_col=3))
    talk.refuse("rows that wrap 16 bits", "MVM", mvm_payload(two, first_row=65535))
    talk.refuse("columns that wrap 16 bits", "MVM", mvm_payload(one, first_col=2, cols=65535))
    talk.refuse("refused without a vector, too", "MVM", mvm_payload([], rows=1, first_row=65535))
    talk.refuse("vectors of more rows than told", "MVM", mvm_payload(two, rows=1), BAD_LENGTH)
    talk.refuse("vectors of fewer rows than told", "MVM", mvm_payload(two, rows=3), BAD_LENGTH)
    talk.refuse("a part not all there", "MVM", mvm_payload([], rows=1)[:-1], BAD_LENGTH)
    talk.refuse("a value of -128", "MVM", mvm_payload([[-128]], first_row=1), BAD_VALUE)


def gathered() -> list[Step]:
    """A map of 3 x 4 values at 10; patches of 2 x 1 values."""
    talk = Conversation("gathered parts")
    talk.program()
    values = [1, 2, 3, 4, -5, -6, -7, -8, 9, 10, 11, 12]
    talk.ask("the map", "WRITE_BUFFER", write_payload(values, 10, 2), tile=NO_TILE)
    patches = [[values[4 * y + x], values[4 * y + x + 4]] for y in range(2) for x in range(0, 4, 2)]
    loops = [(2, 4)], [(2, 4), (2, 2)]
    talk.gather("patches on two rows, two columns", patches, 10, loops, 1, first_row=1, first_col=1, cols=2)
    talk.gather("all columns behind one", patches, 10, loops, first_row=2, first_col=1)
    talk.gather("no loop is one row and one position", [[-5]], 14, ([], []), first_row=3, first_col=2, cols=1)
    talk.gather("the whole tile", [values[:4]], 10, ([(4, 1)], []))
    talk.gather("what was not written", [[0, 1]], 9, ([(2, 1)], []), cols=1)
    talk.gather("backwards", [[4, 3, 2]], 13, ([(3, -1)], []), first_row=1, cols=2)
    talk.ask("no position", "MVM_GATHER", gather_payload(0, [], [(0, 1)], cols=1), little(0, 4))
    talk.trim([7, -8, 9], [8192, 16384, 40000])
    talk.gather("the columns' own trims", patches, 10, loops, first_row=1, first_col=1, cols=2)
    refuse_gathered(talk)
    talk.gather("nothing has changed", patches, 10, loops, first_row=2, first_col=1)
    return talk.steps


def refuse_gathered(talk: Conversation) -> None:
    two: Loops = [(2, 1)]
    talk.refuse("a loop without a turn", "MVM_GATHER", gather_payload(0, [(0, 1)], []))
    talk.refuse("a row too many", "MVM_GATHER", gather_payload(0, two, [], first_row=3))
    talk.refuse("loops of more rows than there are", "MVM_GATHER", gather_payload(0, [(3, 0), (2, 0)], []))
    talk.refuse("65535 * 65535 * 65535 rows", "MVM_GATHER", gather_payload(0, [(65535, 0)] * 3, []))
    talk.refuse(
        "32768 * 32768 * 4 rows, 0 in 32 bits", "MVM_GATHER", gather_payload(0, [(32768, 0)] * 2 + [(4, 0)], [])
    )
    talk.refuse("a column too many", "MVM_GATHER", gather_payload(0, two, [], first_col=2, cols=2))
    talk.refuse("all columns behind the last", "MVM_GATHER", gather_payload(0, two, [], first_col=3))
    talk.refuse("rows that wrap 16 bits", "MVM_GATHER", gather_payload(0, two, [], first_row=65535))
    talk.refuse("columns that wrap 16 bits", "MVM_GATHER", gather_payload(0, two, [], first_col=65535, cols=2))
    talk.refuse("an address below 0", "MVM_GATHER", gather_payload(0, [(2, -1)], []))
    talk.refuse("a part not all there", "MVM_GATHER", gather_payload(0, [], [])[:-1], BAD_LENGTH)
    talk.refuse("half a loop", "MVM_GATHER", gather_payload(0, two, [])[:-3], BAD_LENGTH)


def converted() -> list[Step]:
    talk = Conversation("a converter of 10 bits", output_bits=10)
    talk.program()
    talk.mvm("each vector begins at a byte of its own", [[9, -9], [100, 3]], 0, 2, first_row=2, first_col=1, step=3)
    talk.mvm("clipped values of this column alone", [[127, 127]], 0, 2, first_row=1, first_col=2, cols=1, step=1)
    talk.mvm("clipped values of all columns", [[127, 127]], 0, 2, first_row=1, step=2)
    return talk.steps


def exchanges() -> list[Step]:
    return parts() + gathered() + converted()

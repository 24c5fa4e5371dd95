/* Everything that a board's maker chooses, in one place. Each value can be given on the compiler's command line instead. */
#ifndef PIM_CONFIG_H
#define PIM_CONFIG_H

#if defined(PIM_BOARD_LM3S6965) /* 64 KiB of SRAM */
#define PIM_DEFAULT_MODEL "pim-reference lm3s6965"
#define PIM_DEFAULT_TILES 6
#define PIM_DEFAULT_ROWS 64
#define PIM_DEFAULT_COLS 64
#define PIM_DEFAULT_MAX_PAYLOAD 512
#define PIM_DEFAULT_WINDOW 4
#define PIM_DEFAULT_REPLAY 8
#define PIM_DEFAULT_BUFFER_BYTES 16384
#define PIM_DEFAULT_COMMAND_MS 200
#define PIM_DEFAULT_HAS_BAUD 1
#elif defined(PIM_BOARD_MPS2) /* 4 MiB of SRAM */
#define PIM_DEFAULT_MODEL "pim-reference mps2-an385"
#define PIM_DEFAULT_TILES 32
#define PIM_DEFAULT_ROWS 256
#define PIM_DEFAULT_COLS 256
#define PIM_DEFAULT_MAX_PAYLOAD 4096
#define PIM_DEFAULT_WINDOW 8
#define PIM_DEFAULT_REPLAY 16
#define PIM_DEFAULT_BUFFER_BYTES 524288
#define PIM_DEFAULT_COMMAND_MS 2000
#define PIM_DEFAULT_HAS_BAUD 1
#else /* a process on a computer */
#define PIM_DEFAULT_MODEL "pim-reference native"
#define PIM_DEFAULT_TILES 64
#define PIM_DEFAULT_ROWS 256
#define PIM_DEFAULT_COLS 256
#define PIM_DEFAULT_MAX_PAYLOAD 8192
#define PIM_DEFAULT_WINDOW 16
#define PIM_DEFAULT_REPLAY 32
#define PIM_DEFAULT_BUFFER_BYTES 1048576
#define PIM_DEFAULT_COMMAND_MS 500
#define PIM_DEFAULT_HAS_BAUD 0
#endif

#ifndef PIM_MODEL
#define PIM_MODEL PIM_DEFAULT_MODEL
#endif
#ifndef PIM_SERIAL
#define PIM_SERIAL "REF0001"
#endif
#ifndef PIM_FIRMWARE
#define PIM_FIRMWARE "1.0.0"
#endif
#ifndef PIM_TILES
#define PIM_TILES PIM_DEFAULT_TILES
#endif
#ifndef PIM_ROWS /* of a tile */
#define PIM_ROWS PIM_DEFAULT_ROWS
#endif
#ifndef PIM_COLS
#define PIM_COLS PIM_DEFAULT_COLS
#endif
#ifndef PIM_WEIGHT_BITS
#define PIM_WEIGHT_BITS 8
#endif
#ifndef PIM_INPUT_BITS
#define PIM_INPUT_BITS 8
#endif
#ifndef PIM_OUTPUT_BITS /* of the output converter; 0: none, results are exact */
#define PIM_OUTPUT_BITS 0
#endif
#ifndef PIM_MAX_PAYLOAD
#define PIM_MAX_PAYLOAD PIM_DEFAULT_MAX_PAYLOAD
#endif
#ifndef PIM_WINDOW
#define PIM_WINDOW PIM_DEFAULT_WINDOW
#endif
#ifndef PIM_REPLAY
#define PIM_REPLAY PIM_DEFAULT_REPLAY
#endif
#ifndef PIM_BUFFER_BYTES
#define PIM_BUFFER_BYTES PIM_DEFAULT_BUFFER_BYTES
#endif
#ifndef PIM_COMMAND_MS /* an upper bound of what one request takes */
#define PIM_COMMAND_MS PIM_DEFAULT_COMMAND_MS
#endif
#ifndef PIM_HAS_BAUD /* 1 where the port can change its rate */
#define PIM_HAS_BAUD PIM_DEFAULT_HAS_BAUD
#endif
#ifndef PIM_START_BAUD
#define PIM_START_BAUD 115200
#endif

#define PIM_LARGER(a, b) ((a) > (b) ? (a) : (b))

_Static_assert(PIM_TILES >= 1 && 4 + 2 * PIM_TILES <= PIM_MAX_PAYLOAD, "SELFTEST must be able to name every tile");
/* 8192 rows of 127 * 127, with a gain of 4 and an offset, still fit into int32. */
_Static_assert(PIM_ROWS >= 1 && PIM_ROWS <= 8192, "a trimmed sum must fit into int32");
_Static_assert(PIM_COLS >= 1 && PIM_COLS <= 16383, "columns");
_Static_assert(PIM_WEIGHT_BITS >= 2 && PIM_WEIGHT_BITS <= 8, "weights are int8");
_Static_assert(PIM_INPUT_BITS >= 2 && PIM_INPUT_BITS <= 8, "inputs are int8");
_Static_assert(PIM_OUTPUT_BITS == 0 || (PIM_OUTPUT_BITS >= 2 && PIM_OUTPUT_BITS <= 16), "the converter fits int16");
_Static_assert(PIM_MAX_PAYLOAD >= 64 + PIM_LARGER(PIM_ROWS, 4 * PIM_COLS), "the protocol's smallest max_payload");
_Static_assert(PIM_MAX_PAYLOAD >= 256 && PIM_MAX_PAYLOAD <= 65535, "HELLO's answer needs room");
_Static_assert(PIM_WINDOW >= 1 && PIM_REPLAY >= PIM_WINDOW, "every request under way needs a place in the replay cache");
_Static_assert(PIM_BUFFER_BYTES >= 1, "a buffer");

#endif

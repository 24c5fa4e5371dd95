/* HELLO, READ and STATS: what the board is and how it fares, as TLVs. */
#include <string.h>

#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_output.h"
#include "pim_port.h"

enum { MINOR_VERSION = 0 };
enum {
    HAS_INT4 = 1 << 0,
    HAS_ZERO_SKIPPING = 1 << 1,
    HAS_PACKED = 1 << 2,
    HAS_BUFFER = 1 << 3,
    HAS_BAUD = 1 << 4,
    HAS_TRIMS = 1 << 5
};

struct number {
    uint8_t tag;
    uint32_t value;
};

static void put_text(struct pim_answer *answer, uint8_t tag, const char *text) {
    const size_t length = strlen(text);
    uint8_t *at = pim_answer_extend(answer, 2 + length);
    at[0] = tag;
    at[1] = (uint8_t)length;
    memcpy(at + 2, text, length);
}

static void put_numbers(struct pim_answer *answer, const struct number *numbers, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint8_t *at = pim_answer_extend(answer, 6);
        at[0] = numbers[i].tag;
        at[1] = 4;
        pim_put_u32(at + 2, numbers[i].value);
    }
}

static uint32_t capabilities(void) {
    return HAS_INT4 | HAS_ZERO_SKIPPING | HAS_BUFFER | HAS_TRIMS |
           (uint32_t)(PIM_OUTPUT_BITS != 0 ? HAS_PACKED : 0) |
           (uint32_t)(PIM_HAS_BAUD ? HAS_BAUD : 0);
}

static bool tlvs_are_whole(const uint8_t *bytes, size_t size) {
    size_t at = 0;
    while (at + 2 <= size) {
        at += (size_t)2 + bytes[at + 1];
    }
    return at == size;
}

enum pim_status pim_hello(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    const struct number numbers[] = {
        {1, MINOR_VERSION},  {2, board->boot_id},   {6, PIM_TILES},        {7, PIM_ROWS},         {8, PIM_COLS},
        {9, PIM_WEIGHT_BITS}, {10, PIM_INPUT_BITS}, {11, PIM_OUTPUT_BITS}, {12, PIM_MAX_PAYLOAD}, {13, PIM_WINDOW},
        {14, PIM_REPLAY},    {15, PIM_COMMAND_MS},  {16, capabilities()},  {17, PIM_BUFFER_BYTES},
    };
    if (!tlvs_are_whole(request->payload, request->size)) {
        return PIM_BAD_LENGTH;
    }
    put_numbers(answer, numbers, sizeof numbers / sizeof numbers[0]);
    put_text(answer, 3, PIM_MODEL);
    put_text(answer, 4, PIM_SERIAL);
    put_text(answer, 5, PIM_FIRMWARE);
    return PIM_OK;
}

_Static_assert(14 * 6 + 6 + sizeof PIM_MODEL + sizeof PIM_SERIAL + sizeof PIM_FIRMWARE <= 256, "HELLO's answer");

/* There are no sensors; a tag that is missing says so. */
enum pim_status pim_read(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    const struct number time = {3, pim_port_time_ms() - board->started_ms};
    if (request->size != 0) {
        return PIM_BAD_LENGTH;
    }
    put_numbers(answer, &time, 1);
    return PIM_OK;
}

enum pim_status pim_stats(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    const struct pim_counters *counters = &board->counters;
    const struct number numbers[] = {
        {1, counters->received}, {2, counters->dropped}, {3, counters->other_version}, {4, counters->replayed},
        {5, counters->vectors},  {6, counters->weights}, {7, counters->sent},
    };
    if (request->size != 0) {
        return PIM_BAD_LENGTH;
    }
    put_numbers(answer, numbers, sizeof numbers / sizeof numbers[0]);
    return PIM_OK;
}

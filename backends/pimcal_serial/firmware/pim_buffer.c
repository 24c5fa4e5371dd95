/* WRITE_BUFFER and MVM_GATHER. */
#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_gather.h"
#include "pim_input.h"
#include "pim_product.h"

enum { WRITE_FIELDS = 8, GATHER_FIELDS = 18 };

enum pim_status pim_write_buffer(struct pim_board *board, const struct pim_request *request,
                                 struct pim_answer *answer) {
    (void)answer;
    if (request->size < WRITE_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    const uint8_t format = request->payload[0];
    const uint16_t count = pim_get_u16(request->payload + 2);
    const uint32_t address = pim_get_u32(request->payload + 4);
    const uint8_t *bytes = request->payload + WRITE_FIELDS;
    if (format >= PIM_INPUT_FORMATS || (uint64_t)address + count > PIM_BUFFER_BYTES) {
        return PIM_OUT_OF_RANGE;
    }
    size_t used;
    const enum pim_status status = pim_input_check(format, bytes, request->size - WRITE_FIELDS, count, &used);
    if (status != PIM_OK) {
        return status;
    }
    if (used != request->size - WRITE_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    pim_input_unpack(format, bytes, count, board->buffer + address);
    return PIM_OK;
}

struct gather {
    struct pim_loops rows;
    struct pim_loops positions;
    uint32_t base;
};

static enum pim_status read_gather(const struct pim_request *request, struct gather *gather) {
    const uint8_t *payload = request->payload;
    const uint8_t row_loops = payload[2];
    const uint8_t position_loops = payload[3];
    if (row_loops > PIM_LOOPS || position_loops > PIM_LOOPS) {
        return PIM_OUT_OF_RANGE;
    }
    if (request->size != GATHER_FIELDS + (size_t)PIM_LOOP_BYTES * (row_loops + position_loops)) {
        return PIM_BAD_LENGTH;
    }
    gather->base = pim_get_u32(payload + 8);
    gather->rows = pim_loops_read(payload + GATHER_FIELDS, row_loops);
    gather->positions = pim_loops_read(payload + GATHER_FIELDS + PIM_LOOP_BYTES * row_loops, position_loops);
    return PIM_OK;
}

static enum pim_status check_addresses(const struct gather *gather) {
    if (pim_loops_total(&gather->positions) == 0) {
        return PIM_OK; /* there is none */
    }
    const bool inside = pim_loops_inside(&gather->rows, &gather->positions, gather->base, PIM_BUFFER_BYTES);
    return inside ? PIM_OK : PIM_OUT_OF_RANGE;
}

static enum pim_status check_gather(struct pim_product *product, const uint8_t *payload, const struct gather *gather) {
    const uint64_t rows = pim_loops_total(&gather->rows);
    const enum pim_status status = pim_product_choose(product, pim_get_u16(payload + 12), rows, payload + 14);
    return status == PIM_OK ? check_addresses(gather) : status;
}

static void gather_inputs(struct pim_board *board, struct gather *gather, uint16_t rows) {
    const int64_t position = gather->base + gather->positions.offset;
    for (uint16_t i = 0; i < rows; i++) {
        board->inputs[i] = board->buffer[position + gather->rows.offset];
        pim_loops_step(&gather->rows);
    }
}

static void multiply_gathered(struct pim_board *board, struct pim_product *product, struct gather *gather) {
    const uint64_t vectors = pim_loops_total(&gather->positions);
    for (uint64_t i = 0; i < vectors; i++) {
        gather_inputs(board, gather, product->part.rows);
        pim_product_next(product, board);
        pim_loops_step(&gather->positions);
    }
}

enum pim_status pim_mvm_gather(struct pim_board *board, const struct pim_request *request,
                               struct pim_answer *answer) {
    struct pim_product product;
    struct gather gather;
    if (request->size < GATHER_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    enum pim_status status = pim_product_open(&product, board, request);
    if (status == PIM_OK) {
        status = read_gather(request, &gather);
    }
    if (status == PIM_OK) {
        status = check_gather(&product, request->payload, &gather);
    }
    if (status == PIM_OK) {
        status = pim_product_reserve(&product, answer, pim_loops_total(&gather.positions));
    }
    if (status == PIM_OK) {
        multiply_gathered(board, &product, &gather);
        pim_product_close(&product);
    }
    return status;
}

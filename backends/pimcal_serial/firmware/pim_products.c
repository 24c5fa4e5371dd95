/* MVM, WRITE_BUFFER and MVM_GATHER. */
#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_gather.h"
#include "pim_input.h"
#include "pim_output.h"

enum { MVM_FIELDS = 8, BUFFER_FIELDS = 8, GATHER_FIELDS = 12, SATURATED_BYTES = 4 };

/* Several vectors through one tile: what is to come, and where the results go. */
struct product {
    const struct pim_tile *tile;
    uint8_t format;
    uint32_t step;
    uint32_t saturated;
    uint8_t *start; /* of the answer */
    uint8_t *next;
};

static enum pim_status check_output(uint8_t format, uint32_t step) {
    return format < PIM_OUTPUT_FORMATS && pim_output_step_allowed(step) ? PIM_OK : PIM_OUT_OF_RANGE;
}

/* Takes room for all results; an answer longer than max_payload is out of range. */
static enum pim_status reserve(struct product *product, struct pim_answer *answer, uint64_t vectors) {
    if (vectors > PIM_MAX_PAYLOAD) {
        return PIM_OUT_OF_RANGE;
    }
    const size_t vector = pim_output_size(product->format, product->tile->cols);
    product->start = pim_answer_extend(answer, SATURATED_BYTES + (size_t)vectors * vector);
    product->next = product->start + SATURATED_BYTES;
    return product->start == NULL ? PIM_OUT_OF_RANGE : PIM_OK;
}

/* Multiplies board->inputs. */
static void multiply(struct pim_board *board, struct product *product) {
    const uint16_t cols = product->tile->cols;
    pim_tile_multiply(product->tile, board->inputs, board->outputs);
    product->saturated += pim_output_write(product->format, product->step, board->outputs, cols, product->next);
    product->next += pim_output_size(product->format, cols);
    board->counters.vectors++;
}

static enum pim_status check_vectors(uint8_t format, const uint8_t *bytes, size_t size, uint16_t count, uint16_t rows) {
    for (uint16_t i = 0; i < count; i++) {
        size_t used;
        const enum pim_status status = pim_input_check(format, bytes, size, rows, &used);
        if (status != PIM_OK) {
            return status;
        }
        bytes += used;
        size -= used;
    }
    return size == 0 ? PIM_OK : PIM_BAD_LENGTH;
}

static void multiply_vectors(struct pim_board *board, struct product *product, const struct pim_request *request) {
    const uint8_t format = request->payload[0];
    const uint16_t count = pim_get_u16(request->payload + 2);
    const uint16_t rows = product->tile->rows;
    const uint8_t *bytes = request->payload + MVM_FIELDS;
    size_t left = request->size - MVM_FIELDS;
    for (uint16_t i = 0; i < count; i++) {
        size_t used;
        (void)pim_input_check(format, bytes, left, rows, &used);
        pim_input_unpack(format, bytes, rows, board->inputs);
        multiply(board, product);
        bytes += used;
        left -= used;
    }
    pim_put_u32(product->start, product->saturated);
}

static enum pim_status check_mvm(const struct product *product, const struct pim_request *request) {
    const uint8_t format = request->payload[0];
    const uint16_t count = pim_get_u16(request->payload + 2);
    const enum pim_status status = check_output(product->format, product->step);
    if (status != PIM_OK || format >= PIM_INPUT_FORMATS) {
        return PIM_OUT_OF_RANGE;
    }
    return check_vectors(format, request->payload + MVM_FIELDS, request->size - MVM_FIELDS, count, product->tile->rows);
}

enum pim_status pim_mvm(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_tile *tile;
    if (request->size < MVM_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    struct product product = {.tile = tile, .format = request->payload[1], .step = pim_get_u32(request->payload + 4)};
    status = check_mvm(&product, request);
    if (status == PIM_OK) {
        status = reserve(&product, answer, pim_get_u16(request->payload + 2));
    }
    if (status == PIM_OK) {
        multiply_vectors(board, &product, request);
    }
    return status;
}

enum pim_status pim_write_buffer(struct pim_board *board, const struct pim_request *request,
                                 struct pim_answer *answer) {
    (void)answer;
    if (request->size < BUFFER_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    const uint8_t format = request->payload[0];
    const uint16_t count = pim_get_u16(request->payload + 2);
    const uint32_t address = pim_get_u32(request->payload + 4);
    const uint8_t *bytes = request->payload + BUFFER_FIELDS;
    if (format >= PIM_INPUT_FORMATS || (uint64_t)address + count > PIM_BUFFER_BYTES) {
        return PIM_OUT_OF_RANGE;
    }
    size_t used;
    const enum pim_status status = pim_input_check(format, bytes, request->size - BUFFER_FIELDS, count, &used);
    if (status != PIM_OK) {
        return status;
    }
    if (used != request->size - BUFFER_FIELDS) {
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

static enum pim_status check_gather(const struct product *product, const struct gather *gather) {
    if (check_output(product->format, product->step) != PIM_OK ||
        pim_loops_total(&gather->rows) != product->tile->rows) {
        return PIM_OUT_OF_RANGE;
    }
    if (pim_loops_total(&gather->positions) == 0) {
        return PIM_OK; /* no address */
    }
    const bool inside = pim_loops_inside(&gather->rows, &gather->positions, gather->base, PIM_BUFFER_BYTES);
    return inside ? PIM_OK : PIM_OUT_OF_RANGE;
}

static void gather_inputs(struct pim_board *board, struct gather *gather, uint16_t rows) {
    const int64_t position = gather->base + gather->positions.offset;
    for (uint16_t i = 0; i < rows; i++) {
        board->inputs[i] = board->buffer[position + gather->rows.offset];
        pim_loops_step(&gather->rows);
    }
}

static void multiply_gathered(struct pim_board *board, struct product *product, struct gather *gather) {
    const uint64_t vectors = pim_loops_total(&gather->positions);
    for (uint64_t i = 0; i < vectors; i++) {
        gather_inputs(board, gather, product->tile->rows);
        multiply(board, product);
        pim_loops_step(&gather->positions);
    }
    pim_put_u32(product->start, product->saturated);
}

enum pim_status pim_mvm_gather(struct pim_board *board, const struct pim_request *request,
                               struct pim_answer *answer) {
    struct pim_tile *tile;
    struct gather gather;
    if (request->size < GATHER_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status == PIM_OK) {
        status = read_gather(request, &gather);
    }
    if (status != PIM_OK) {
        return status;
    }
    struct product product = {.tile = tile, .format = request->payload[1], .step = pim_get_u32(request->payload + 4)};
    status = check_gather(&product, &gather);
    if (status == PIM_OK) {
        status = reserve(&product, answer, pim_loops_total(&gather.positions));
    }
    if (status == PIM_OK) {
        multiply_gathered(board, &product, &gather);
    }
    return status;
}

/* PROGRAM, READBACK, SELFTEST, GET_TRIM and SET_TRIM. */
#include "pim_bytes.h"
#include "pim_commands.h"

enum { PROGRAM_FIELDS = 12, TRIM_BYTES = 4, LARGEST_WEIGHT = (1 << (PIM_WEIGHT_BITS - 1)) - 1 };

struct programming {
    uint16_t rows;
    uint16_t cols;
    uint16_t first;
    uint16_t count;
    uint32_t id;
    const uint8_t *weights;
};

static struct programming read_programming(const uint8_t *payload) {
    return (struct programming){
        .rows = pim_get_u16(payload),
        .cols = pim_get_u16(payload + 2),
        .first = pim_get_u16(payload + 4),
        .count = pim_get_u16(payload + 6),
        .id = pim_get_u32(payload + 8),
        .weights = payload + PROGRAM_FIELDS,
    };
}

static bool goes_on(const struct pim_tile *tile, const struct programming *p) {
    return tile->started && tile->id == p->id;
}

static bool fits(const struct pim_tile *tile, const struct programming *p) {
    const bool size_fits = p->rows >= 1 && p->rows <= PIM_ROWS && p->cols >= 1 && p->cols <= PIM_COLS;
    const bool same_matrix = !goes_on(tile, p) || (tile->rows == p->rows && tile->cols == p->cols);
    return size_fits && same_matrix && (uint32_t)p->first + p->count <= p->rows;
}

static bool weights_allowed(const uint8_t *weights, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const int32_t weight = pim_get_i8(weights[i]);
        if (weight < -LARGEST_WEIGHT || weight > LARGEST_WEIGHT) {
            return false;
        }
    }
    return true;
}

static void store(struct pim_tile *tile, const struct programming *p) {
    if (!goes_on(tile, p)) {
        pim_tile_start(tile, p->rows, p->cols, p->id);
    }
    for (uint16_t i = 0; i < p->count; i++) {
        pim_tile_write_row(tile, (uint16_t)(p->first + i), p->weights + (size_t)i * p->cols);
    }
}

static enum pim_status check_programming(const struct pim_tile *tile, const struct programming *p, size_t size) {
    const size_t weights = (size_t)p->count * p->cols;
    if (!fits(tile, p)) {
        return PIM_OUT_OF_RANGE;
    }
    if (size != PROGRAM_FIELDS + weights) {
        return PIM_BAD_LENGTH;
    }
    return weights_allowed(p->weights, weights) ? PIM_OK : PIM_BAD_VALUE;
}

enum pim_status pim_program(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_tile *tile;
    if (request->size < PROGRAM_FIELDS) {
        return PIM_BAD_LENGTH;
    }
    enum pim_status status = pim_find_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    const struct programming p = read_programming(request->payload);
    status = check_programming(tile, &p, request->size);
    if (status == PIM_OK) {
        store(tile, &p);
        board->counters.weights += (uint32_t)p.count * p.cols;
        pim_put_u16(pim_answer_extend(answer, 2), tile->missing);
    }
    return status;
}

static void put_rows(const struct pim_tile *tile, uint16_t first, uint16_t count, uint8_t *at) {
    for (uint16_t i = 0; i < count; i++) {
        for (uint16_t j = 0; j < tile->cols; j++) {
            *at++ = (uint8_t)tile->weights[first + i][j];
        }
    }
}

enum pim_status pim_readback(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_tile *tile;
    if (request->size != 4) {
        return PIM_BAD_LENGTH;
    }
    const enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    const uint16_t first = pim_get_u16(request->payload);
    const uint16_t count = pim_get_u16(request->payload + 2);
    if ((uint32_t)first + count > tile->rows) {
        return PIM_OUT_OF_RANGE;
    }
    uint8_t *at = pim_answer_extend(answer, 4 + (size_t)count * tile->cols);
    if (at == NULL) {
        return PIM_OUT_OF_RANGE;
    }
    pim_put_u16(at, tile->rows);
    pim_put_u16(at + 2, tile->cols);
    put_rows(tile, first, count, at + 4);
    return PIM_OK;
}

enum pim_status pim_selftest(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    uint16_t failed = 0;
    if (request->size != 0) {
        return PIM_BAD_LENGTH;
    }
    uint8_t *at = pim_answer_extend(answer, 4);
    for (uint16_t tile = 0; tile < PIM_TILES; tile++) {
        if (!pim_tile_memory_works(&board->tiles[tile])) {
            failed++;
            pim_put_u16(pim_answer_extend(answer, 2), tile);
        }
    }
    pim_put_u16(at, PIM_TILES);
    pim_put_u16(at + 2, failed);
    return PIM_OK;
}

enum pim_status pim_get_trim(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_tile *tile;
    if (request->size != 0) {
        return PIM_BAD_LENGTH;
    }
    const enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    uint8_t *at = pim_answer_extend(answer, (size_t)TRIM_BYTES * tile->cols);
    for (uint16_t j = 0; j < tile->cols; j++) {
        pim_put_u16(at + TRIM_BYTES * j, (uint16_t)tile->offset[j]);
        pim_put_u16(at + TRIM_BYTES * j + 2, tile->gain[j]);
    }
    return PIM_OK;
}

enum pim_status pim_set_trim(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_tile *tile;
    (void)answer;
    const enum pim_status status = pim_find_usable_tile(board, request, &tile);
    if (status != PIM_OK) {
        return status;
    }
    if (request->size != (size_t)TRIM_BYTES * tile->cols) {
        return PIM_BAD_LENGTH;
    }
    for (uint16_t j = 0; j < tile->cols; j++) {
        tile->offset[j] = pim_get_i16(request->payload + TRIM_BYTES * j);
        tile->gain[j] = pim_get_u16(request->payload + TRIM_BYTES * j + 2);
    }
    return PIM_OK;
}

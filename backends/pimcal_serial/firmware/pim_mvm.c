/* MVM. */
#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_input.h"
#include "pim_product.h"

enum { FIELDS = 16 };

struct vectors {
    uint8_t format;
    uint16_t count;
    const uint8_t *bytes;
    size_t size;
};

static struct vectors read_vectors(const struct pim_request *request) {
    return (struct vectors){
        .format = request->payload[0],
        .count = pim_get_u16(request->payload + 2),
        .bytes = request->payload + FIELDS,
        .size = request->size - FIELDS,
    };
}

/* Takes a copy, as it goes through all of them. */
static enum pim_status check_vectors(struct vectors vectors, uint16_t rows) {
    if (vectors.format >= PIM_INPUT_FORMATS) {
        return PIM_OUT_OF_RANGE;
    }
    for (uint16_t i = 0; i < vectors.count; i++) {
        size_t used;
        const enum pim_status status = pim_input_check(vectors.format, vectors.bytes, vectors.size, rows, &used);
        if (status != PIM_OK) {
            return status;
        }
        vectors.bytes += used;
        vectors.size -= used;
    }
    return vectors.size == 0 ? PIM_OK : PIM_BAD_LENGTH;
}

static void multiply_vectors(struct pim_board *board, struct pim_product *product, struct vectors vectors) {
    const uint16_t rows = product->part.rows;
    for (uint16_t i = 0; i < vectors.count; i++) {
        size_t used;
        (void)pim_input_check(vectors.format, vectors.bytes, vectors.size, rows, &used);
        pim_input_unpack(vectors.format, vectors.bytes, rows, board->inputs);
        pim_product_next(product, board);
        vectors.bytes += used;
        vectors.size -= used;
    }
}

static enum pim_status choose_part(struct pim_product *product, const uint8_t *payload) {
    return pim_product_choose(product, pim_get_u16(payload + 8), pim_get_u16(payload + 10), payload + 12);
}

enum pim_status pim_mvm(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    struct pim_product product;
    if (request->size < FIELDS) {
        return PIM_BAD_LENGTH;
    }
    const struct vectors vectors = read_vectors(request);
    enum pim_status status = pim_product_open(&product, board, request);
    if (status == PIM_OK) {
        status = choose_part(&product, request->payload);
    }
    if (status == PIM_OK) {
        status = check_vectors(vectors, product.part.rows);
    }
    if (status == PIM_OK) {
        status = pim_product_reserve(&product, answer, vectors.count);
    }
    if (status == PIM_OK) {
        multiply_vectors(board, &product, vectors);
        pim_product_close(&product);
    }
    return status;
}

#include "pim_commands.h"

#include <string.h>

#include "pim_bytes.h"
#include "pim_port.h"

static enum pim_status echo(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    (void)board;
    memcpy(pim_answer_extend(answer, request->size), request->payload, request->size);
    return PIM_OK;
}

static enum pim_status sink(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    (void)board;
    pim_put_u32(pim_answer_extend(answer, 4), (uint32_t)request->size);
    return PIM_OK;
}

static enum pim_status baud(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    (void)answer;
    if (request->size != 4) {
        return PIM_BAD_LENGTH;
    }
    const uint32_t rate = pim_get_u32(request->payload);
    if (!PIM_HAS_BAUD || rate == 0 || !pim_port_can_baud(rate)) {
        return PIM_OUT_OF_RANGE;
    }
    board->baud_asked = rate;
    return PIM_OK;
}

static enum pim_status reset(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    (void)answer;
    if (request->size != 0) {
        return PIM_BAD_LENGTH;
    }
    board->restart_asked = true;
    return PIM_OK;
}

struct command {
    uint8_t type;
    bool keep;
    pim_handler *carry_out;
};

/* BAUD is not kept: after a fall-back, its repetition has to switch the rate again. */
static const struct command commands[] = {
    {PIM_HELLO, false, pim_hello},
    {PIM_ECHO, false, echo},
    {PIM_SINK, false, sink},
    {PIM_PROGRAM, true, pim_program},
    {PIM_READBACK, true, pim_readback},
    {PIM_MVM, true, pim_mvm},
    {PIM_READ, false, pim_read},
    {PIM_SELFTEST, true, pim_selftest},
    {PIM_GET_TRIM, true, pim_get_trim},
    {PIM_SET_TRIM, true, pim_set_trim},
    {PIM_STATS, false, pim_stats},
    {PIM_BAUD, false, baud},
    {PIM_RESET, true, reset},
    {PIM_WRITE_BUFFER, true, pim_write_buffer},
    {PIM_MVM_GATHER, true, pim_mvm_gather},
};

static const struct command *find(uint8_t type) {
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (commands[i].type == type) {
            return &commands[i];
        }
    }
    return NULL;
}

enum pim_status pim_command(struct pim_board *board, const struct pim_request *request, struct pim_answer *answer) {
    const struct command *command = find(request->type);
    return command == NULL ? PIM_UNKNOWN_TYPE : command->carry_out(board, request, answer);
}

bool pim_answer_to_keep(uint8_t type) {
    const struct command *command = find(type);
    return command != NULL && command->keep;
}

enum pim_status pim_find_tile(struct pim_board *board, const struct pim_request *request, struct pim_tile **tile) {
    if (request->tile >= PIM_TILES) {
        return PIM_OUT_OF_RANGE;
    }
    *tile = &board->tiles[request->tile];
    return PIM_OK;
}

enum pim_status pim_find_usable_tile(struct pim_board *board, const struct pim_request *request,
                                     struct pim_tile **tile) {
    const enum pim_status found = pim_find_tile(board, request, tile);
    if (found != PIM_OK) {
        return found;
    }
    return pim_tile_usable(*tile) ? PIM_OK : PIM_NOT_PROGRAMMED;
}

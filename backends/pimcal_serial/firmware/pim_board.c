#include "pim_board.h"

#include <string.h>

#include "pim_bytes.h"
#include "pim_commands.h"
#include "pim_port.h"

enum { READ_BYTES = 256, WAIT_MS = 100, BAUD_TRIAL_MS = 1000, VERSION_PAUSE_MS = 1000 };

static uint32_t new_boot_id(uint32_t last) {
    const uint32_t id = pim_port_entropy();
    return id != last && id != 0 ? id : last + 1 + (last == UINT32_MAX);
}

static void send(struct pim_board *board, const struct pim_answer *answer) {
    pim_send(answer);
    board->counters.sent++;
}

static void send_unasked(struct pim_board *board, uint8_t type, const uint8_t *payload, size_t size) {
    const struct pim_request nobodys = {.type = type, .tile = PIM_NO_TILE};
    struct pim_answer *answer = pim_replay_next(&board->replay);
    pim_answer_open(answer, &nobodys);
    memcpy(pim_answer_extend(answer, size), payload, size);
    pim_answer_close(answer, PIM_OK);
    send(board, answer);
}

static void announce_boot(struct pim_board *board) {
    uint8_t id[4];
    pim_put_u32(id, board->boot_id);
    send_unasked(board, PIM_BOOT, id, sizeof id);
}

static void start(struct pim_board *board, uint32_t last_boot_id) {
    memset(board, 0, sizeof *board);
    board->boot_id = new_boot_id(last_boot_id);
    board->started_ms = pim_port_time_ms();
    board->baud.rate = PIM_START_BAUD;
    pim_receiver_clear(&board->receiver);
    announce_boot(board);
}

static void switch_baud(struct pim_board *board, uint32_t rate, uint32_t before) {
    board->baud.rate = rate;
    board->baud.before = before;
    board->baud.switched_ms = pim_port_time_ms();
    pim_port_set_baud(rate);
    pim_receiver_clear(&board->receiver);
}

static void fall_back_in_time(struct pim_board *board) {
    const struct pim_baud *baud = &board->baud;
    static const uint8_t warning[] = "\2no frame at the new rate, back at the old one";
    if (baud->before != 0 && pim_port_time_ms() - baud->switched_ms >= BAUD_TRIAL_MS) {
        switch_baud(board, baud->before, 0);
        send_unasked(board, PIM_LOG, warning, sizeof warning - 1);
    }
}

static void answer_with_status(struct pim_board *board, const struct pim_request *request, enum pim_status status) {
    struct pim_answer *answer = pim_replay_next(&board->replay);
    pim_answer_open(answer, request);
    pim_answer_close(answer, status);
    send(board, answer);
}

/* A frame of another version may have another header, so nothing of it but the sequence is repeated. */
static void refuse_version(struct pim_board *board, const struct pim_request *request) {
    const struct pim_request hello = {.type = PIM_HELLO, .sequence = request->sequence, .tile = PIM_NO_TILE};
    const uint32_t now = pim_port_time_ms();
    board->counters.other_version++;
    if (board->refused_version && now - board->refused_version_ms < VERSION_PAUSE_MS) {
        return;
    }
    board->refused_version = true;
    board->refused_version_ms = now;
    answer_with_status(board, &hello, PIM_WRONG_VERSION);
}

static void carry_out(struct pim_board *board, const struct pim_request *request) {
    struct pim_answer *answer = pim_replay_next(&board->replay);
    pim_answer_open(answer, request);
    pim_answer_close(answer, pim_command(board, request, answer));
    send(board, answer);
    if (pim_answer_to_keep(request->type)) {
        pim_replay_keep(&board->replay);
    }
}

static void handle_request(struct pim_board *board, const struct pim_request *request) {
    const struct pim_answer *before = pim_replay_find(&board->replay, request);
    if (before != NULL) {
        board->counters.replayed++;
        send(board, before);
    } else {
        carry_out(board, request);
    }
}

static void handle_frame(struct pim_board *board, bool too_long) {
    const struct pim_request request = pim_parse(&board->receiver);
    const bool is_answer = (request.type & 0x80) != 0;
    if (request.version != PIM_VERSION) {
        refuse_version(board, &request);
        return;
    }
    board->counters.received++;
    board->baud.before = 0;
    if (is_answer) {
        return; /* our own, from a line that echoes: to answer it would never end */
    }
    if (too_long) {
        answer_with_status(board, &request, PIM_BAD_LENGTH);
    } else {
        handle_request(board, &request);
    }
}

static void take_byte(struct pim_board *board, uint8_t byte) {
    const enum pim_received received = pim_receive(&board->receiver, byte);
    if (received == PIM_FRAME || received == PIM_FRAME_TOO_LONG) {
        handle_frame(board, received == PIM_FRAME_TOO_LONG);
    } else if (received == PIM_NO_FRAME) {
        board->counters.dropped++;
    }
    if (byte == 0) {
        pim_receiver_clear(&board->receiver);
    }
}

static void switch_baud_if_asked(struct pim_board *board) {
    if (board->baud_asked != 0) {
        switch_baud(board, board->baud_asked, board->baud.rate);
        board->baud_asked = 0;
    }
}

static void restart(struct pim_board *board) {
    pim_port_restart();
    start(board, board->boot_id);
}

static void take_bytes(struct pim_board *board, const uint8_t *bytes, int count) {
    for (int i = 0; i < count; i++) {
        take_byte(board, bytes[i]);
        switch_baud_if_asked(board);
        if (board->restart_asked) {
            restart(board); /* the rest of the bytes is lost, as it would be on a chip */
            return;
        }
    }
}

void pim_board_run(struct pim_board *board) {
    uint8_t bytes[READ_BYTES];
    int count;
    start(board, 0);
    while ((count = pim_port_read(bytes, sizeof bytes, WAIT_MS)) >= 0) {
        take_bytes(board, bytes, count);
        fall_back_in_time(board);
    }
}

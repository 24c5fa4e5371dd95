#include "pim_replay.h"

const struct pim_answer *pim_replay_find(const struct pim_replay *replay, const struct pim_request *request) {
    for (uint16_t i = 0; i <= PIM_REPLAY; i++) {
        const struct pim_answer *answer = &replay->answers[i];
        if (answer->kept && answer->sequence == request->sequence && answer->request_crc == request->crc) {
            return answer;
        }
    }
    return NULL;
}

struct pim_answer *pim_replay_next(struct pim_replay *replay) {
    replay->answers[replay->next].kept = false;
    return &replay->answers[replay->next];
}

void pim_replay_keep(struct pim_replay *replay) {
    replay->answers[replay->next].kept = true;
    replay->next = (uint16_t)((replay->next + 1) % (PIM_REPLAY + 1));
}

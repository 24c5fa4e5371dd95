/* The last answers, so that a repeated request is answered without being carried out again. */
#ifndef PIM_REPLAY_H
#define PIM_REPLAY_H

#include "pim_frame.h"

struct pim_replay {
    struct pim_answer answers[PIM_REPLAY + 1]; /* one more, for the answer that is being written */
    uint16_t next;
};

/* The answer to this very request, NULL if it is not among the last. */
const struct pim_answer *pim_replay_find(const struct pim_replay *replay, const struct pim_request *request);

/* Where the next answer is to be written. It is not kept unless pim_replay_keep follows. */
struct pim_answer *pim_replay_next(struct pim_replay *replay);

void pim_replay_keep(struct pim_replay *replay);

#endif

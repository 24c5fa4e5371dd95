/* What the firmware needs of the machine below it. To port it, write these functions and a main that calls pim_board_run. */
#ifndef PIM_PORT_H
#define PIM_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Waits at most timeout_ms for bytes. Returns how many it stored, 0 after the time, -1 if the board is to end. */
int pim_port_read(uint8_t *bytes, size_t capacity, uint32_t timeout_ms);

/* Sends bytes; may hold them back until the flush. */
void pim_port_write(const uint8_t *bytes, size_t size);

/* Returns when everything written is on the line, or lost because nobody takes it. */
void pim_port_flush(void);

/* A clock that only goes forward, and wraps. */
uint32_t pim_port_time_ms(void);

/* A number that differs from start to start. */
uint32_t pim_port_entropy(void);

/* Restarts the machine. If it returns, the firmware starts itself anew. */
void pim_port_restart(void);

/* Whether the line can run at this rate, in bits per second, and switching to it. Called only where PIM_HAS_BAUD is 1. */
bool pim_port_can_baud(uint32_t rate);
void pim_port_set_baud(uint32_t rate);

#endif

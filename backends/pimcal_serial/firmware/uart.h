/* The serial line of a Cortex-M board, below port_cortex_m.c. */
#ifndef UART_H
#define UART_H

#include <stdbool.h>
#include <stdint.h>

#if defined(PIM_BOARD_LM3S6965)
enum { CPU_HZ = 50000000, UART_INTERRUPT = 5 };
#else
enum { CPU_HZ = 25000000, UART_INTERRUPT = 0 };
#endif

/* Starts clock and line; received bytes raise UART_INTERRUPT. */
void uart_open(void);

bool uart_can_baud(uint32_t rate);
void uart_set_baud(uint32_t rate);

/* Waits for room and sends. */
void uart_put(uint8_t byte);

/* Waits until everything is sent. */
void uart_drain(void);

/* Takes a received byte, if there is one, and acknowledges the interrupt. */
bool uart_take(uint8_t *byte);

#endif

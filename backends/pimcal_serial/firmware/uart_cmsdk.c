/* The CMSDK UART of mps2-an385. */
#include "pim_config.h"
#include "uart.h"

struct cmsdk_uart {
    volatile uint32_t data;
    volatile uint32_t state;
    volatile uint32_t control;
    volatile uint32_t interrupt;
    volatile uint32_t divisor;
};

enum { TX_FULL = 1, RX_FULL = 2, TX_ENABLE = 1, RX_ENABLE = 2, RX_INTERRUPT_ENABLE = 8, RX_INTERRUPT = 2 };
enum { SMALLEST_DIVISOR = 16 };

static struct cmsdk_uart *const uart = (struct cmsdk_uart *)0x40004000;

static uint32_t divisor_for(uint32_t rate) { return (CPU_HZ + rate / 2) / rate; }

void uart_open(void) {
    uart->control = TX_ENABLE | RX_ENABLE | RX_INTERRUPT_ENABLE;
    uart_set_baud(PIM_START_BAUD);
}

/* An error of up to 2 % keeps the last bit of a byte within its time. */
bool uart_can_baud(uint32_t rate) {
    if (rate > CPU_HZ / SMALLEST_DIVISOR || rate < 300) {
        return false;
    }
    const uint32_t actual = CPU_HZ / divisor_for(rate);
    return (actual > rate ? actual - rate : rate - actual) <= rate / 50;
}

void uart_set_baud(uint32_t rate) { uart->divisor = divisor_for(rate); }

void uart_put(uint8_t byte) {
    uart_drain();
    uart->data = byte;
}

void uart_drain(void) {
    while ((uart->state & TX_FULL) != 0) {
    }
}

bool uart_take(uint8_t *byte) {
    uart->interrupt = RX_INTERRUPT;
    if ((uart->state & RX_FULL) == 0) {
        return false;
    }
    *byte = (uint8_t)(uart->data & 0xFF);
    return true;
}

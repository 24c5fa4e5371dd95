/* The PL011 UART of lm3s6965evb, and the clock that it runs on. */
#include "pim_config.h"
#include "uart.h"

enum { RX_EMPTY = 1 << 4, TX_FULL = 1 << 5, BUSY = 1 << 3 };
enum { EIGHT_BITS_AND_FIFO = 0x70, ENABLE = 0x301, RX_AND_TIMEOUT = 0x50 };

static volatile uint32_t *reg(uint32_t address) { return (volatile uint32_t *)address; }

/* UART0 at 0x4000C000. */
static volatile uint32_t *uart(uint32_t offset) { return reg(0x4000C000 + offset); }
static volatile uint32_t *data(void) { return uart(0x00); }
static volatile uint32_t *flags(void) { return uart(0x18); }
static volatile uint32_t *control(void) { return uart(0x30); }

/* 50 MHz from the board's 8 MHz crystal: PLL with 200 MHz, divided by 4. */
static void start_clock(void) {
    volatile uint32_t *const rcc = reg(0x400FE060);
    const uint32_t pll_locked = 1 << 6;
    const uint32_t bypass = 1 << 11;
    const uint32_t divide_by_4 = (3u << 23) | (1u << 22);
    const uint32_t crystal_8_mhz = 0xEu << 6;
    *rcc = bypass | (1u << 13) | crystal_8_mhz;
    *rcc = bypass | divide_by_4 | crystal_8_mhz;
    while ((*reg(0x400FE050) & pll_locked) == 0) {
    }
    *rcc = divide_by_4 | crystal_8_mhz;
}

/* Clocks for UART0 and port A, and the port's pins 0 and 1 for it. */
static void connect_pins(void) {
    *reg(0x400FE104) |= 1;
    *reg(0x400FE108) |= 1;
    while ((*reg(0x400FE108) & 1) == 0) {
    }
    *reg(0x40004420) |= 3;
    *reg(0x4000451C) |= 3;
}

void uart_open(void) {
    start_clock();
    connect_pins();
    uart_set_baud(PIM_START_BAUD);
    *uart(0x38) = RX_AND_TIMEOUT;
}

/* The line samples 16 times a bit; rates down to 1200 keep the divisor in 16 bits. */
bool uart_can_baud(uint32_t rate) { return rate >= 1200 && rate <= CPU_HZ / 16; }

void uart_set_baud(uint32_t rate) {
    const uint32_t divisor = (CPU_HZ * 4u + rate / 2) / rate; /* in 1/64 */
    *control() = 0;
    *uart(0x24) = divisor / 64;
    *uart(0x28) = divisor % 64;
    *uart(0x2C) = EIGHT_BITS_AND_FIFO;
    *control() = ENABLE;
}

void uart_put(uint8_t byte) {
    while ((*flags() & TX_FULL) != 0) {
    }
    *data() = byte;
}

void uart_drain(void) {
    while ((*flags() & BUSY) != 0) {
    }
}

bool uart_take(uint8_t *byte) {
    *uart(0x44) = RX_AND_TIMEOUT;
    if ((*flags() & RX_EMPTY) != 0) {
        return false;
    }
    *byte = (uint8_t)(*data() & 0xFF);
    return true;
}

/* A Cortex-M3: vectors, start, a millisecond clock, and a ring of received bytes, filled by interrupt. */
#include "pim_board.h"
#include "pim_port.h"
#include "uart.h"

/* A line without flow control must hold a whole window while a request is carried out. */
#if defined(PIM_BOARD_LM3S6965)
enum { RING_BYTES = 4096 };
#else
enum { RING_BYTES = 65536 };
#endif
enum { ENTROPY_MS = 3 };
enum { LONGEST_ON_LINE = PIM_FRAME_BYTES + PIM_FRAME_BYTES / 254 + 2 };
_Static_assert((RING_BYTES & (RING_BYTES - 1)) == 0, "positions wrap");
_Static_assert(RING_BYTES > PIM_WINDOW * LONGEST_ON_LINE, "a whole window");

static struct pim_board board;
static uint8_t ring[RING_BYTES];
static volatile uint32_t ring_in; /* counts bytes; written by the interrupt only */
static volatile uint32_t ring_out;
static volatile uint32_t time_ms;
static uint32_t entropy __attribute__((section(".noinit"))); /* survives a restart; after power-up it is whatever it is */

static volatile uint32_t *core(uint32_t address) { return (volatile uint32_t *)address; }

static void tick(void) { time_ms++; }

static void receive(void) {
    uint8_t byte;
    while (uart_take(&byte)) {
        if (ring_in - ring_out < RING_BYTES) {
            ring[ring_in % RING_BYTES] = byte;
            ring_in++;
        }
    }
}

static void start_tick(void) {
    const uint32_t processor_clock = 4;
    *core(0xE000E010) = processor_clock;
    *core(0xE000E014) = CPU_HZ / 1000 - 1;
    *core(0xE000E018) = 0;
    *core(0xE000E010) = processor_clock | 2 | 1; /* interrupt, on */
}

static size_t take(uint8_t *bytes, size_t capacity) {
    size_t count = 0;
    while (count < capacity && ring_out != ring_in) {
        bytes[count++] = ring[ring_out % RING_BYTES];
        ring_out++;
    }
    return count;
}

/* With interrupts masked no byte can come between the look and the sleep; a pending one ends the sleep all the same. */
static void sleep_if_empty(void) {
    __asm volatile("cpsid i" ::: "memory");
    if (ring_in == ring_out) {
        __asm volatile("wfi");
    }
    __asm volatile("cpsie i" ::: "memory");
}

int pim_port_read(uint8_t *bytes, size_t capacity, uint32_t timeout_ms) {
    const uint32_t start = time_ms;
    while (ring_in == ring_out && time_ms - start < timeout_ms) {
        sleep_if_empty();
    }
    return (int)take(bytes, capacity);
}

void pim_port_write(const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        uart_put(bytes[i]);
    }
}

void pim_port_flush(void) { uart_drain(); }

uint32_t pim_port_time_ms(void) { return time_ms; }

/* What the memory held at power-up, what it was at the last start, and how often the clock could be looked at in some
   milliseconds. A chip with a random number generator uses that instead. */
uint32_t pim_port_entropy(void) {
    const uint32_t start_ms = time_ms;
    while (time_ms - start_ms < ENTROPY_MS) {
        entropy = (entropy ^ *core(0xE000E018)) * 2654435761u + 1;
        entropy ^= entropy >> 15;
    }
    return entropy;
}

void pim_port_restart(void) {
    uart_drain();
    *core(0xE000ED0C) = 0x05FA0004;
    for (;;) {
    }
}

bool pim_port_can_baud(uint32_t rate) { return uart_can_baud(rate); }

void pim_port_set_baud(uint32_t rate) { uart_set_baud(rate); }

/* From the linker script. */
extern uint32_t data_in_flash[], data_start[], data_end[], bss_start[], bss_end[], stack_top[];

static void fill_memory(void) {
    const uint32_t *from = data_in_flash;
    for (uint32_t *to = data_start; to < data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = bss_start; to < bss_end; to++) {
        *to = 0;
    }
}

static void start(void) {
    fill_memory();
    uart_open();
    start_tick();
    *core(0xE000E100) = 1u << UART_INTERRUPT;
    pim_board_run(&board);
}

static void fault(void) {
    *core(0xE000ED0C) = 0x05FA0004; /* a restart is what the host can handle */
    for (;;) {
    }
}

struct vectors {
    uint32_t *stack;
    void (*system[15])(void);
    void (*interrupts[UART_INTERRUPT + 1])(void);
};

const struct vectors vectors __attribute__((section(".vectors"), used));
const struct vectors vectors = {
    stack_top,
    {start, fault, fault, fault, fault, fault, NULL, NULL, NULL, NULL, fault, fault, NULL, fault, tick},
    {[UART_INTERRUPT] = receive},
};

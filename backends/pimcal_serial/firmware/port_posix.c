/* The board as a process: behind a pseudo-terminal, or behind a TCP listener for one host at a time. */
#define _XOPEN_SOURCE 700

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "pim_board.h"
#include "pim_port.h"

enum { OUTPUT_BYTES = 65536, EXIT_USAGE = 64, TAKER_MS = 1000 };

static struct pim_board board;
static volatile sig_atomic_t stop_asked;
static sigset_t signals_while_waiting;
static int listener = -1;
static int line = -1; /* -1: no host */
static uint8_t output[OUTPUT_BYTES];
static size_t output_size;

static void ask_to_stop(int signal_number) {
    (void)signal_number;
    stop_asked = 1;
}

/* SIGINT and SIGTERM reach the process only while it waits, so none is missed between a look and a wait. */
static void catch_signals(void) {
    struct sigaction action;
    sigset_t stopping;
    memset(&action, 0, sizeof action);
    action.sa_handler = ask_to_stop;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sigemptyset(&stopping);
    sigaddset(&stopping, SIGINT);
    sigaddset(&stopping, SIGTERM);
    sigprocmask(SIG_BLOCK, &stopping, &signals_while_waiting);
    sigdelset(&signals_while_waiting, SIGINT);
    sigdelset(&signals_while_waiting, SIGTERM);
}

static bool wait_for(int descriptor, bool writable, uint32_t timeout_ms) {
    const struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = (long)(timeout_ms % 1000) * 1000000};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(descriptor, &set);
    return pselect(descriptor + 1, writable ? NULL : &set, writable ? &set : NULL, NULL, &timeout,
                   &signals_while_waiting) > 0;
}

static void hang_up(void) {
    if (listener >= 0) {
        close(line);
        line = -1;
    }
}

static void accept_host(uint32_t timeout_ms) {
    const int yes = 1;
    if (wait_for(listener, false, timeout_ms)) {
        line = accept(listener, NULL, NULL);
    }
    if (line >= 0) {
        fcntl(line, F_SETFL, O_NONBLOCK);
        setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    }
}

static bool only_later(ssize_t result) {
    return result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

static int read_line(uint8_t *bytes, size_t capacity) {
    const ssize_t count = read(line, bytes, capacity);
    if (count > 0) {
        return (int)count;
    }
    if (!only_later(count)) {
        hang_up();
    }
    return 0;
}

int pim_port_read(uint8_t *bytes, size_t capacity, uint32_t timeout_ms) {
    int count = 0;
    if (line < 0) {
        accept_host(timeout_ms);
    } else if (wait_for(line, false, timeout_ms)) {
        count = read_line(bytes, capacity);
    }
    return stop_asked ? -1 : count;
}

/* Like a wire, a line that nobody reads loses what is sent, here after a second. */
void pim_port_flush(void) {
    size_t sent = 0;
    while (line >= 0 && sent < output_size) {
        const ssize_t count = write(line, output + sent, output_size - sent);
        if (count > 0) {
            sent += (size_t)count;
        } else if (!only_later(count)) {
            hang_up();
        } else if (!wait_for(line, true, TAKER_MS)) {
            break;
        }
    }
    output_size = 0;
}

void pim_port_write(const uint8_t *bytes, size_t size) {
    if (size > OUTPUT_BYTES - output_size) {
        pim_port_flush();
    }
    memcpy(output + output_size, bytes, size);
    output_size += size;
}

uint32_t pim_port_time_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

uint32_t pim_port_entropy(void) {
    uint32_t number = (uint32_t)getpid() ^ pim_port_time_ms();
    const int source = open("/dev/urandom", O_RDONLY);
    if (source >= 0) {
        if (read(source, &number, sizeof number) < 0) {
            perror("pimboard: /dev/urandom");
        }
        close(source);
    }
    return number;
}

void pim_port_restart(void) {}

bool pim_port_can_baud(uint32_t rate) {
    (void)rate;
    return false; /* neither a pseudo-terminal nor TCP has a rate */
}

void pim_port_set_baud(uint32_t rate) { (void)rate; }

static int fail(const char *what) {
    fprintf(stderr, "pimboard: %s: %s\n", what, strerror(errno));
    return EXIT_FAILURE;
}

static int make_raw(int terminal) {
    struct termios settings;
    if (tcgetattr(terminal, &settings) != 0) {
        return -1;
    }
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag = CS8 | CREAD | CLOCAL;
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
    return tcsetattr(terminal, TCSANOW, &settings);
}

/* Our own hold on the host's end keeps it raw, and open while no host is there. */
static int open_terminal(void) {
    line = posix_openpt(O_RDWR | O_NOCTTY);
    if (line < 0 || grantpt(line) != 0 || unlockpt(line) != 0) {
        return -1;
    }
    const int hosts_end = open(ptsname(line), O_RDWR | O_NOCTTY);
    fcntl(line, F_SETFL, O_NONBLOCK);
    return hosts_end < 0 ? -1 : make_raw(hosts_end);
}

static int run_on_terminal(const char *path) {
    if (open_terminal() != 0 || symlink(ptsname(line), path) != 0) {
        return fail(path);
    }
    printf("pimboard: pty %s\n", path);
    fflush(stdout);
    pim_board_run(&board);
    unlink(path);
    return EXIT_SUCCESS;
}

static int open_listener(uint16_t port) {
    const int yes = 1;
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    return bind(listener, (struct sockaddr *)&address, sizeof address) == 0 ? listen(listener, 1) : -1;
}

static uint16_t listener_port(void) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    getsockname(listener, (struct sockaddr *)&address, &size);
    return ntohs(address.sin_port);
}

static int run_on_tcp(const char *port) {
    char *end;
    const unsigned long number = strtoul(port, &end, 10);
    if (*port == '\0' || *end != '\0' || number > 65535) {
        fprintf(stderr, "pimboard: '%s' is not a port: give 0 (any free one) to 65535\n", port);
        return EXIT_USAGE;
    }
    if (open_listener((uint16_t)number) != 0) {
        return fail(port);
    }
    fcntl(listener, F_SETFL, O_NONBLOCK);
    printf("pimboard: tcp 127.0.0.1:%u\n", (unsigned)listener_port());
    fflush(stdout);
    pim_board_run(&board);
    return EXIT_SUCCESS;
}

int main(int count, char **arguments) {
    catch_signals();
    if (count == 3 && strcmp(arguments[1], "--pty") == 0) {
        return run_on_terminal(arguments[2]);
    }
    if (count == 3 && strcmp(arguments[1], "--tcp") == 0) {
        return run_on_tcp(arguments[2]);
    }
    fprintf(stderr, "usage: pimboard --pty PATH | --tcp PORT\n");
    return EXIT_USAGE;
}

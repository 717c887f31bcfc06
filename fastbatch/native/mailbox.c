#define _GNU_SOURCE
#include "mailbox.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open /* Linux 5.3; the same number everywhere */
#define SYS_pidfd_open 434
#endif

enum { IDLE, ASKED, TAKEN, MADE, FAILED };

#define SLICE_MS 20 /* between looks at what no futex reports: the other process's end, `stop`, the timeout */

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* What the answering side has used: its process, if it is the main thread of one, or its thread. */
static int64_t processor_time(void) {
    struct timespec time;
    clock_gettime(syscall(SYS_gettid) == getpid() ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_THREAD_CPUTIME_ID, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static uint32_t get(const uint32_t *value) {
    return __atomic_load_n(value, __ATOMIC_ACQUIRE);
}

/* Sleeps while *value is `is`, for some milliseconds at most. */
static void sleep_while(uint32_t *value, uint32_t is, int milliseconds) {
    struct timespec timeout = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    syscall(SYS_futex, value, FUTEX_WAIT, is, &timeout, NULL, 0);
}

static void set(uint32_t *value, uint32_t to) {
    __atomic_store_n(value, to, __ATOMIC_RELEASE);
    syscall(SYS_futex, value, FUTEX_WAKE, 1, NULL, NULL, 0);
}

int fb_process_file(int process) {
    return (int)syscall(SYS_pidfd_open, process, 0);
}

int fb_wait_for_end(const fb_peer *peer, int milliseconds) {
    struct pollfd ends[2] = {{.fd = peer->socket, .events = 0}, {.fd = peer->process_file, .events = POLLIN}};
    return poll(ends, 2, milliseconds) > 0 && (ends[0].revents & (POLLHUP | POLLERR) || ends[1].revents & POLLIN);
}

/* Says which sample the other side has been at since then. It may be damaged, so `made` may be any number. */
static void note(fb_progress *progress, const fb_mailbox *mailbox, uint32_t ready, uint32_t made, int64_t since) {
    int64_t index = ready ? FB_AT_ITS_OWN : FB_STARTING;
    if (ready && made > 0 && made < FB_MAX_QUESTIONS && made < mailbox->asked)
        index = (int64_t)mailbox->questions[made].index;
    fb_progress_set(progress, index, since);
}

/* Asks, and waits until the samples were made, or one cannot be. */
static fb_answer wait_for_answer(fb_mailbox *mailbox, const fb_peer *peer, const int32_t *stop, int64_t timeout,
                                 fb_progress *progress) {
    uint32_t state, made = 0, taken = 0, ready = get(&mailbox->ready);
    int64_t begin = now();
    note(progress, mailbox, ready, made, begin);
    __atomic_store_n(&mailbox->made, 0, __ATOMIC_RELAXED);
    set(&mailbox->state, ASKED);
    while ((state = get(&mailbox->state)) == ASKED || state == TAKEN) {
        if (taken != (state == TAKEN) || made != get(&mailbox->made) || ready != get(&mailbox->ready)) {
            taken = state == TAKEN;
            made = get(&mailbox->made);
            ready = get(&mailbox->ready);
            begin = now();
            note(progress, mailbox, ready, made, begin);
        }
        sleep_while(&mailbox->state, state, SLICE_MS);
        if (get(&mailbox->state) > TAKEN) break;
        if (fb_wait_for_end(peer, 0)) {
            state = get(&mailbox->state); /* the last answer may have come just before the end */
            if (state == ASKED) return FB_ANSWER_ABSENT;
            if (state == TAKEN) return FB_ANSWER_DIED;
            break;
        }
        if (fb_stopping(stop)) return FB_ANSWER_STOPPED;
        const int64_t limit = timeout + (ready ? 0 : (int64_t)FB_START_SECONDS * 1000000000);
        if (timeout && made == get(&mailbox->made) && now() - begin >= limit) return FB_ANSWER_LATE;
    }
    return get(&mailbox->state) == MADE ? FB_ANSWER_MADE : FB_ANSWER_FAILED;
}

fb_answer fb_mailbox_ask(fb_mailbox *mailbox, const fb_peer *peer, const int32_t *stop, int64_t timeout, uint32_t *made,
                         fb_progress *progress) {
    fb_answer answer = wait_for_answer(mailbox, peer, stop, timeout, progress);
    fb_progress_set(progress, FB_AT_ITS_OWN, 0);
    *made = get(&mailbox->made);
    if (*made < mailbox->asked) return answer == FB_ANSWER_MADE ? FB_ANSWER_FAILED : answer;
    *made = mailbox->asked; /* the other side may end between the last sample and its answer */
    return FB_ANSWER_MADE;
}

void fb_mailbox_quit(fb_mailbox *mailbox) {
    __atomic_store_n(&mailbox->quit, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &mailbox->state, FUTEX_WAKE, 1, NULL, NULL, 0);
}

int fb_send_file(int socket, int file) {
    char byte = 'f';
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct iovec content = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &content, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &file, sizeof file);
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -1;
}

int fb_mailbox_listen(fb_mailbox *mailbox, int milliseconds) {
    if (!get(&mailbox->ready)) __atomic_store_n(&mailbox->ready, 1, __ATOMIC_RELEASE);
    for (int look = 0; look < 2; look++) {
        uint32_t state = get(&mailbox->state);
        if (get(&mailbox->quit)) return -1;
        if (state == ASKED) {
            __atomic_store_n(&mailbox->state, TAKEN, __ATOMIC_RELEASE);
            mailbox->begin = now();
            mailbox->cpu_begin = processor_time();
            return 1;
        }
        if (look == 0) sleep_while(&mailbox->state, state, milliseconds);
    }
    return 0;
}

static void answer(fb_mailbox *mailbox, uint32_t state) {
    mailbox->busy = now() - mailbox->begin;
    mailbox->cpu = processor_time() - mailbox->cpu_begin;
    set(&mailbox->state, state);
}

int fb_mailbox_made(fb_mailbox *mailbox) {
    uint32_t made = get(&mailbox->made) + 1;
    __atomic_store_n(&mailbox->made, made, __ATOMIC_RELEASE);
    if (made < mailbox->asked) return !get(&mailbox->quit);
    answer(mailbox, MADE);
    return 0;
}

void fb_mailbox_failed(fb_mailbox *mailbox) {
    answer(mailbox, FAILED);
}

static struct {
    int process, socket;
} watched;

static void *watch(void *unused) {
    (void)unused;
    int file = fb_process_file(watched.process);
    if (file >= 0) {
        struct pollfd ends[2] = {{.fd = file, .events = POLLIN}, {.fd = watched.socket, .events = 0}};
        while (poll(ends, 2, -1) < 1 || !(ends[0].revents || ends[1].revents & (POLLHUP | POLLERR))) {
            if (ends[1].revents & POLLNVAL) ends[1].fd = -1; /* it was closed here */
        }
    } else { /* an older kernel; or that process has ended already */
        const fb_peer parent = {.socket = watched.socket, .process_file = -1};
        while (kill(watched.process, 0) == 0 && !fb_wait_for_end(&parent, 0)) usleep(100000);
    }
    _exit(1);
}

int fb_end_with(int process, int socket) {
    pthread_t thread;
    sigset_t all, former;
    watched.process = process;
    watched.socket = socket;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &former); /* signals are for Python's threads */
    int problem = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    if (problem == 0) pthread_detach(thread);
    return problem;
}

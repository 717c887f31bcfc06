"""The names of POSIX threads and clocks that the core needs.

All are declared noexcept: none of them raises or needs the GIL.
"""

from libc.stdint cimport int32_t, int64_t
from posix.time cimport timespec, clockid_t, CLOCK_MONOTONIC, clock_gettime

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    ctypedef unsigned long pthread_t

    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept

    int pthread_condattr_init(pthread_condattr_t *attributes) noexcept
    int pthread_condattr_setclock(pthread_condattr_t *attributes, clockid_t clock) noexcept
    int pthread_condattr_destroy(pthread_condattr_t *attributes) noexcept
    int pthread_cond_init(pthread_cond_t *condition, pthread_condattr_t *attributes) noexcept
    int pthread_cond_destroy(pthread_cond_t *condition) noexcept
    int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) noexcept
    int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const timespec *deadline) noexcept
    int pthread_cond_signal(pthread_cond_t *condition) noexcept
    int pthread_cond_broadcast(pthread_cond_t *condition) noexcept

    int pthread_atfork(void (*before)() noexcept nogil, void (*after_in_parent)() noexcept nogil,
                       void (*after_in_child)() noexcept nogil) noexcept

    int pthread_create(pthread_t *thread, void *attributes, void *(*body)(void *) noexcept nogil,
                       void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept
    int pthread_detach(pthread_t thread) noexcept
    int pthread_setname_np(pthread_t thread, const char *name) noexcept

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *signals) noexcept
    int sigdelset(sigset_t *signals, int number) noexcept
    int pthread_sigmask(int how, const sigset_t *signals, sigset_t *former) noexcept
    enum:
        SIG_BLOCK
        SIG_SETMASK
        SIGSEGV
        SIGBUS
        SIGFPE
        SIGILL

cdef extern from "<sched.h>" nogil:
    cdef struct sched_param:
        int sched_priority
    enum:
        SCHED_OTHER
        SCHED_BATCH
    int sched_getscheduler(int thread) noexcept  # 0: the calling thread
    int sched_setscheduler(int thread, int policy, const sched_param *priority) noexcept

cdef extern from *:
    """
    /* The shared counters and flags of the core, read and written by several threads at once. */
    static inline int32_t atomic_add(int32_t *value, int32_t change) {
        return __atomic_add_fetch(value, change, __ATOMIC_ACQ_REL);
    }
    static inline int32_t atomic_get(const int32_t *value) { return __atomic_load_n(value, __ATOMIC_ACQUIRE); }
    static inline void atomic_set(int32_t *value, int32_t to) { __atomic_store_n(value, to, __ATOMIC_RELEASE); }
    static inline int64_t atomic_add64(int64_t *value, int64_t change) {
        return __atomic_add_fetch(value, change, __ATOMIC_RELAXED);
    }
    static inline int64_t atomic_get64(const int64_t *value) { return __atomic_load_n(value, __ATOMIC_RELAXED); }
    static inline void atomic_set64(int64_t *value, int64_t to) { __atomic_store_n(value, to, __ATOMIC_RELAXED); }
    static inline void spin_pause(void) { /* of a thread that looks at a value again and again */
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ volatile("yield");
    #endif
    }
    static inline int32_t atomic_swap(int32_t *value, int32_t to) {
        return __atomic_exchange_n(value, to, __ATOMIC_ACQ_REL);
    }
    """
    int32_t atomic_add(int32_t *value, int32_t change) noexcept nogil
    int32_t atomic_get(const int32_t *value) noexcept nogil
    void atomic_set(int32_t *value, int32_t to) noexcept nogil
    int32_t atomic_swap(int32_t *value, int32_t to) noexcept nogil
    void spin_pause() noexcept nogil
    int64_t atomic_add64(int64_t *value, int64_t change) noexcept nogil
    int64_t atomic_get64(const int64_t *value) noexcept nogil
    void atomic_set64(int64_t *value, int64_t to) noexcept nogil

cdef inline int64_t now() noexcept nogil:
    """Nanoseconds on the monotonic clock."""
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline timespec deadline_after(double seconds) noexcept nogil:
    cdef timespec deadline
    cdef int64_t nanoseconds
    clock_gettime(CLOCK_MONOTONIC, &deadline)
    nanoseconds = deadline.tv_nsec + <int64_t>(min(seconds, 1e8) * 1e9)
    deadline.tv_sec += nanoseconds // 1000000000
    deadline.tv_nsec = nanoseconds % 1000000000
    return deadline


cdef inline int thread_start(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument,
                             const char *name) noexcept nogil:
    """Starts a thread of fastbatch with this name (at most 15 characters). 0, or an errno.

    Signals are for the threads of the program. So this thread blocks all signals except those that its own faults
    cause, such as SIGBUS for a mapped file that was truncated. The kernel ends the process in any case, but a handler
    such as Python's faulthandler can report the fault only if the signal is not blocked.
    """
    cdef sigset_t others
    cdef sigset_t former
    cdef int problem
    sigfillset(&others)
    sigdelset(&others, SIGSEGV)
    sigdelset(&others, SIGBUS)
    sigdelset(&others, SIGFPE)
    sigdelset(&others, SIGILL)
    pthread_sigmask(SIG_BLOCK, &others, &former)
    problem = pthread_create(thread, NULL, body, argument)
    pthread_sigmask(SIG_SETMASK, &former, NULL)
    if problem == 0:
        pthread_setname_np(thread[0], name)
    return problem


cdef inline void thread_yields() noexcept nogil:
    """Sets SCHED_BATCH for the calling thread, so that waking a worker does not preempt the consumer."""
    cdef sched_param priority
    if sched_getscheduler(0) == SCHED_OTHER:
        priority.sched_priority = 0
        sched_setscheduler(0, SCHED_BATCH, &priority)

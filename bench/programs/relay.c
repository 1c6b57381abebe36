/*
 * A relay with SO_SPLICE, for the benchmark: what FreeBSD and OpenBSD do by themselves, in C.
 *
 *     relay LISTEN_PORT TARGET_PORT [-v]
 *
 * One thread and one kqueue.  Both directions of a pair are spliced.  The kernel ends a splice at
 * an EOF and does not pass it on; bytes may be left at the source then, behind a full drain.  They
 * are spliced once more when the drain has room, and only then is the drain shut down.  Where
 * anything fails, both sides are reset.  With -v each pair says at its end what was spliced.
 */

#include <sys/types.h>
#include <sys/event.h>
#include <sys/filio.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Between two looks at all pairs: the least, and, doubled each time, the most without an event. */
#define LEAST_NANOSECONDS 50000000L
#define MOST_NANOSECONDS 800000000L
#define EVENTS 256

enum state {
	CONNECTING,	/* the server's side isn't connected yet */
	SPLICED,
	WAITING,	/* bytes are left at the source, and the drain is full */
	ENDED		/* the drain was shut down */
};

struct pair;

/* A direction, and the socket that is its source. */
struct flow {
	struct pair *pair;
	int source;
	int drain;
	enum state state;
	off_t spliced;	/* by the splices that have ended */
	off_t seen;	/* at the last look, by the splice that lives */
};

struct pair {
	struct flow flows[2];	/* from the client, from the server */
	bool closed;
	LIST_ENTRY(pair) entry;
};

static LIST_HEAD(, pair) pairs = LIST_HEAD_INITIALIZER(pairs);
static LIST_HEAD(, pair) closed = LIST_HEAD_INITIALIZER(closed);
static struct sockaddr_in target;
static int queue;
static bool verbose;

static struct flow *
other(struct flow *flow)
{
	return &flow->pair->flows[flow == &flow->pair->flows[0]];
}

static void
set_int(int fd, int level, int option, int value)
{
	(void)setsockopt(fd, level, option, &value, sizeof(value));
}

static int
pending_error(int fd)
{
	int error = 0;
	socklen_t size = sizeof(error);

	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

static short
polled(int fd, short events)
{
	struct pollfd ask = { .fd = fd, .events = events };

	return poll(&ask, 1, 0) == 1 ? ask.revents : 0;
}

static off_t
moved(int source)
{
	off_t count = 0;
	socklen_t size = sizeof(count);

	(void)getsockopt(source, SOL_SOCKET, SO_SPLICE, &count, &size);
	return count;
}

static int
splice(int source, int drain)
{
	struct splice splice;

	memset(&splice, 0, sizeof(splice));
	splice.sp_fd = drain;
	return setsockopt(source, SOL_SOCKET, SO_SPLICE, &splice, sizeof(splice));
}

/* Both sockets at once; reset: their peers learn that not everything was delivered. */
static void
close_pair(struct pair *pair, bool reset)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 0 };
	int i;

	if (pair->closed)
		return;
	pair->closed = true;
	for (i = 0; i < 2; i++) {
		if (pair->flows[i].state == SPLICED) {
			(void)splice(pair->flows[i].source, -1);
			pair->flows[i].spliced += moved(pair->flows[i].source);
		}
		if (reset)
			(void)setsockopt(pair->flows[i].source, SOL_SOCKET, SO_LINGER, &linger,
			    sizeof(linger));
	}
	for (i = 0; i < 2; i++)
		(void)close(pair->flows[i].source);
	if (verbose) {
		printf("%lld bytes up, %lld bytes down, %s, kernel/SO_SPLICE\n",
		    (long long)pair->flows[0].spliced, (long long)pair->flows[1].spliced,
		    reset ? "reset" : "eof");
		(void)fflush(stdout);
	}
	/* Events that were read already may still name it. */
	LIST_REMOVE(pair, entry);
	LIST_INSERT_HEAD(&closed, pair, entry);
}

static void
start(struct flow *flow)
{
	flow->seen = 0;
	flow->state = SPLICED;
	if (splice(flow->source, flow->drain) == -1) {
		flow->state = ENDED;
		close_pair(flow->pair, true);
	}
}

/*
 * The splice is over, or seems to be.  Once it has been ended by hand nothing is in flight, and
 * the count and what is left at the source are final.
 */
static void
settle(struct flow *flow)
{
	ssize_t count;
	int error;
	char byte;

	(void)splice(flow->source, -1);	/* "there is none" says the same */
	if (flow->state == SPLICED)	/* else the count has been added already */
		flow->spliced += moved(flow->source);
	flow->state = WAITING;
	/* OpenBSD leaves the cause there, which would end the next splice. */
	error = pending_error(flow->source);
	if ((error != 0 && error != ENOBUFS) || pending_error(flow->drain) != 0) {
		close_pair(flow->pair, true);
		return;
	}
	count = recv(flow->source, &byte, 1, MSG_PEEK);
	if (count == 0) {
		flow->state = ENDED;
		if (other(flow)->state == ENDED)
			close_pair(flow->pair, false);
		else if (shutdown(flow->drain, SHUT_WR) == -1)
			close_pair(flow->pair, true);
	} else if (count == -1 && errno != EAGAIN) {
		close_pair(flow->pair, true);
	} else if (count == -1 || (polled(flow->drain, POLLOUT) & POLLOUT) != 0) {
		start(flow);
	}
	/* Else the drain is full, and an event says when it has room. */
}

static void
connected(struct flow *server)
{
	if (pending_error(server->source) != 0) {
		close_pair(server->pair, true);
		return;
	}
	start(other(server));
	if (!server->pair->closed)
		start(server);
}

/* The socket may have something to read, or has room, or has failed. */
static void
happened(struct flow *flow, const struct kevent *event)
{
	struct flow *towards = other(flow);	/* the flow whose drain this socket is */

	if (flow->pair->closed)
		return;
	if (flow->state == CONNECTING) {
		if (event->filter == EVFILT_WRITE && flow == &flow->pair->flows[1])
			connected(flow);
		return;
	}
	if (event->filter == EVFILT_READ) {
		/* Silent as long as the source is spliced. */
		if (flow->state == SPLICED)
			settle(flow);
	} else if (towards->state == WAITING) {
		settle(towards);
	} else if (towards->state == SPLICED) {
#ifdef __FreeBSD__
		/* A drain is never writable for poll(2): it is none any more.  Or the event is stale. */
		if ((polled(flow->source, POLLOUT) & (POLLOUT | POLLHUP | POLLERR)) != 0)
			settle(towards);
#else
		/* Every end makes the source readable: that event comes too. */
		if ((event->flags & EV_EOF) != 0)
			settle(towards);
#endif
	}
}

/* What no event tells. */
static void
look(struct flow *flow)
{
	int left = 0;

	if (flow->state != SPLICED || ioctl(flow->source, FIONREAD, &left) == -1)
		return;
#ifdef __FreeBSD__
	/* An EOF or a reset that came while the kernel was moving the last bytes is lost. */
	if ((left == 0 && (polled(flow->source, POLLRDHUP) & (POLLRDHUP | POLLHUP)) != 0) ||
	    (polled(flow->drain, POLLOUT) & POLLHUP) != 0)
		settle(flow);
#else
	/* A splice in bulk can stand still until the drain's TCP is pushed. */
	off_t now = moved(flow->source);

	if (left > 0 && now == flow->seen && (polled(flow->drain, POLLOUT) & POLLOUT) != 0) {
		set_int(flow->drain, IPPROTO_TCP, TCP_NOPUSH, 1);
		set_int(flow->drain, IPPROTO_TCP, TCP_NOPUSH, 0);
	}
	flow->seen = now;
#endif
}

static void
look_at_all(void)
{
	struct pair *pair, *next;
	int i;

	for (pair = LIST_FIRST(&pairs); pair != NULL; pair = next) {
		next = LIST_NEXT(pair, entry);
		for (i = 0; i < 2 && !pair->closed; i++)
			look(&pair->flows[i]);
	}
}

static bool
watch(struct flow *flow)
{
	struct kevent changes[2];

	EV_SET(&changes[0], flow->source, EVFILT_READ, EV_ADD | EV_CLEAR, 0, 0, flow);
	EV_SET(&changes[1], flow->source, EVFILT_WRITE, EV_ADD | EV_CLEAR, 0, 0, flow);
	return kevent(queue, changes, 2, NULL, 0, NULL) == 0;
}

static void
accept_one(int client)
{
	struct pair *pair = calloc(1, sizeof(*pair));
	int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int i;

	if (pair == NULL || server == -1) {
		warn("a client is refused");
		free(pair);
		if (server != -1)
			(void)close(server);
		(void)close(client);
		return;
	}
	pair->flows[0] = (struct flow){ .pair = pair, .source = client, .drain = server };
	pair->flows[1] = (struct flow){ .pair = pair, .source = server, .drain = client };
	LIST_INSERT_HEAD(&pairs, pair, entry);
	set_int(client, IPPROTO_TCP, TCP_NODELAY, 1);
	set_int(server, IPPROTO_TCP, TCP_NODELAY, 1);
	if (connect(server, (struct sockaddr *)&target, sizeof(target)) == -1 &&
	    errno != EINPROGRESS) {
		close_pair(pair, true);
		return;
	}
	/* Before anything is spliced: no end is missed. */
	for (i = 0; i < 2; i++)
		if (!watch(&pair->flows[i])) {
			close_pair(pair, true);
			return;
		}
}

static void
accept_all(int listener)
{
	int client;

	while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) != -1)
		accept_one(client);
	if (errno == EMFILE || errno == ENFILE)
		err(1, "accept");	/* not over and over without a pause */
}

static int
listening(int port)
{
	struct sockaddr_in address = target;
	struct kevent change;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (listener == -1)
		err(1, "socket");
	set_int(listener, SOL_SOCKET, SO_REUSEADDR, 1);
	address.sin_port = htons(port);
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == -1 ||
	    listen(listener, 1024) == -1)
		err(1, "port %d", port);
	EV_SET(&change, listener, EVFILT_READ, EV_ADD, 0, 0, NULL);
	if (kevent(queue, &change, 1, NULL, 0, NULL) == -1)
		err(1, "kevent");
	return listener;
}

static void
as_many_descriptors_as_allowed(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int
main(int argc, char **argv)
{
	struct kevent events[EVENTS];
	struct timespec pause = { .tv_nsec = LEAST_NANOSECONDS };
	struct timespec now, soon, next = { 0 };
	struct pair *pair;
	int count, i, listener;

	if (argc < 3)
		errx(2, "usage: relay LISTEN_PORT TARGET_PORT [-v]");
	verbose = argc > 3;
	as_many_descriptors_as_allowed();
	(void)signal(SIGPIPE, SIG_IGN);
	target.sin_family = AF_INET;
	target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	target.sin_port = htons(atoi(argv[2]));
	if ((queue = kqueue()) == -1)
		err(1, "kqueue");
	listener = listening(atoi(argv[1]));
	for (;;) {
		/* Nothing is looked at where nothing is spliced. */
		count = kevent(queue, NULL, 0, events, EVENTS, LIST_EMPTY(&pairs) ? NULL : &pause);
		if (count == -1 && errno != EINTR)
			err(1, "kevent");
		for (i = 0; i < count; i++) {
			if (events[i].udata != NULL)
				happened(events[i].udata, &events[i]);
			else
				accept_all(listener);
		}
		(void)clock_gettime(CLOCK_MONOTONIC, &now);
		if (count > 0) {
			pause.tv_nsec = LEAST_NANOSECONDS;
			timespecadd(&now, &pause, &soon);
			if (timespeccmp(&next, &soon, >))
				next = soon;
		} else if (pause.tv_nsec < MOST_NANOSECONDS) {
			pause.tv_nsec *= 2;
		}
		if (timespeccmp(&now, &next, >=)) {
			look_at_all();
			timespecadd(&now, &pause, &next);
		}
		while ((pair = LIST_FIRST(&closed)) != NULL) {
			LIST_REMOVE(pair, entry);
			free(pair);
		}
	}
}

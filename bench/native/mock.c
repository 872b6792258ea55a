/* mock.c: an upstream that costs almost nothing, with the wire image of vLLM's OpenAI server.
 *
 *   mock PORT        PORT 0 takes a free one; the first line on stdout is "port N"
 *
 * It exists to load a proxy, not to judge it: one thread, one epoll loop, constant answers. What it must get right is what
 * a proxy pays for: the bytes per event, one write() per event as uvicorn does it, and the moment of each write.
 *
 *   POST, any path      "stream" not true: one JSON chat completion of about 0.9 KB with usage.
 *                       "stream": true: SSE in chunked coding: a role chunk, "max_tokens" content chunks (100 if absent), the
 *                       usage chunk if "include_usage" is true, [DONE]. "continuous_usage_stats": true adds the running usage
 *                       to every chunk, as vLLM does (only together with include_usage).
 *                       "seed": N is the pace, N microseconds between chunks; 0 sends all of them back to back.
 *   GET /metrics        the two gauges a load-aware proxy polls; GET /v1/models and anything else: a small JSON document
 *
 * Each content is "T<nanoseconds of CLOCK_MONOTONIC> ", taken just before the write, so that the load generator on the same
 * machine can tell how long the relay took.
 *
 * Due times are rounded up to 100 us. Waking for each chunk alone would make the mock, not the proxy, the busiest process. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FD_MAX 65536
#define REQUEST_BYTES_MAX (8 << 20)
#define TICK_NS 100000ull
#define PROMPT_TOKENS 280

typedef struct {
  int fd;
  char *in;             /* request bytes, and one spare for a terminator */
  size_t in_len, in_cap;
  char *out;            /* what the socket did not take yet */
  size_t out_len, out_cap;
  bool streaming, usage_each, usage_last;
  int sent, total;      /* content chunks */
  uint64_t interval_ns, due_ns;
  int heap_at;          /* place in the heap of due streams, -1 when not in it */
  char model[128];
} Conn;

static Conn *heap[FD_MAX]; /* min-heap by due_ns */
static int heap_len, running, epoll_fd;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* ---- the heap of streams that wait for their next chunk */

static void heap_put(int at, Conn *c) { heap[at] = c; c->heap_at = at; }

static void heap_up(int at) {
  Conn *c = heap[at];
  for (; at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
  heap_put(at, c);
}

static void heap_down(int at) {
  Conn *c = heap[at];
  for (;;) {
    int child = 2 * at + 1;
    if (child >= heap_len) break;
    if (child + 1 < heap_len && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
    if (heap[child]->due_ns >= c->due_ns) break;
    heap_put(at, heap[child]);
    at = child;
  }
  heap_put(at, c);
}

static void heap_add(Conn *c) { heap_put(heap_len++, c); heap_up(c->heap_at); }

static void heap_remove(Conn *c) {
  if (c->heap_at < 0) return;
  int at = c->heap_at;
  Conn *last = heap[--heap_len];
  c->heap_at = -1;
  if (last == c) return;
  heap_put(at, last);
  heap_up(at);
  heap_down(last->heap_at);
}

/* ---- sockets */

static void conn_close(Conn *c) {
  heap_remove(c);
  if (c->streaming) running--;
  close(c->fd);
  free(c->in);
  free(c->out);
  free(c);
}

static void watch(Conn *c, uint32_t events) {
  struct epoll_event e = {.events = events, .data.ptr = c};
  epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

/* Sends, or keeps what the socket does not take. 0, or -1 when the peer is gone. */
static int conn_send(Conn *c, const char *bytes, size_t n) {
  if (c->out_len == 0) {
    ssize_t r = send(c->fd, bytes, n, MSG_NOSIGNAL);
    if (r == (ssize_t)n) return 0;
    if (r < 0 && errno != EAGAIN) return -1;
    if (r > 0) { bytes += r; n -= (size_t)r; }
    watch(c, EPOLLIN | EPOLLOUT);
  }
  if (c->out_len + n > c->out_cap) {
    c->out_cap = 2 * (c->out_len + n);
    c->out = realloc(c->out, c->out_cap);
  }
  memcpy(c->out + c->out_len, bytes, n);
  c->out_len += n;
  return 0;
}

static int conn_flush(Conn *c) {
  ssize_t r = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
  if (r < 0) return errno == EAGAIN ? 0 : -1;
  c->out_len -= (size_t)r;
  memmove(c->out, c->out + r, c->out_len);
  if (c->out_len == 0) watch(c, EPOLLIN);
  return 0;
}

/* ---- answers */

static int send_event(Conn *c, const char *event, int n, bool last) {
  char b[1536];
  int len = sprintf(b, "%x\r\n", (unsigned)n);
  memcpy(b + len, event, (size_t)n);
  len += n;
  len += sprintf(b + len, last ? "\r\n0\r\n\r\n" : "\r\n");
  return conn_send(c, b, (size_t)len);
}

static int chunk_head(const Conn *c, char *ev) {
  return sprintf(ev, "data: {\"id\":\"chatcmpl-8e0b9b1c2d3f4a5b8c7d6e5f4a3b2c1d\",\"object\":\"chat.completion.chunk\","
                     "\"created\":1763772000,\"model\":\"%s\",\"choices\":[", c->model);
}

static int chunk_usage(const Conn *c, char *ev) {
  return sprintf(ev, ",\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}", PROMPT_TOKENS,
                 PROMPT_TOKENS + c->sent, c->sent);
}

static int send_delta(Conn *c, const char *delta, bool finished) {
  char ev[1024];
  int n = chunk_head(c, ev);
  n += sprintf(ev + n, "{\"index\":0,\"delta\":{%s},\"logprobs\":null,\"finish_reason\":%s,%s\"token_ids\":null}]", delta,
               finished ? "\"length\"" : "null", finished ? "\"stop_reason\":null," : "");
  if (c->usage_each) n += chunk_usage(c, ev + n);
  n += sprintf(ev + n, "}\n\n");
  return send_event(c, ev, n, false);
}

/* The next event of a stream; after the last content chunk also all that follows it. 0, or -1 when the peer is gone. */
static int stream_step(Conn *c) {
  if (c->sent < 0) { /* the role chunk */
    c->sent = 0;
    return send_delta(c, "\"role\":\"assistant\",\"content\":\"\"", false);
  }
  char ev[1024];
  snprintf(ev, sizeof ev, "\"content\":\"T%llu \"", (unsigned long long)now_ns());
  c->sent++;
  if (send_delta(c, ev, c->sent == c->total)) return -1;
  if (c->sent < c->total) return 0;
  if (c->usage_last) {
    int n = chunk_head(c, ev);
    n += sprintf(ev + n, "]");
    n += chunk_usage(c, ev + n);
    n += sprintf(ev + n, "}\n\n");
    if (send_event(c, ev, n, false)) return -1;
  }
  c->streaming = false;
  running--;
  return send_event(c, "data: [DONE]\n\n", 14, true);
}

static int send_document(Conn *c, const char *type, const char *body, int n) {
  char b[4096];
  int len = snprintf(b, sizeof b, "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                                  "content-length: %d\r\ncontent-type: %s\r\n\r\n%.*s", n, type, n, body);
  return conn_send(c, b, (size_t)len);
}

static int send_completion(Conn *c) {
  char b[2048];
  int n = sprintf(b, "{\"id\":\"chatcmpl-8e0b9b1c2d3f4a5b8c7d6e5f4a3b2c1d\",\"object\":\"chat.completion\",\"created\":1763772000,"
                     "\"model\":\"%s\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"", c->model);
  while (n < 690) n += sprintf(b + n, "lorem ipsum dolor sit amet ");
  n += sprintf(b + n, "\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],"
                      "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":100,\"prompt_tokens_details\":null},"
                      "\"system_fingerprint\":\"vllm-mock\"}", PROMPT_TOKENS, PROMPT_TOKENS + 100);
  return send_document(c, "application/json", b, n);
}

static int send_get(Conn *c) {
  char b[1024];
  int n;
  if (!strncmp(c->in, "GET /metrics", 12)) {
    n = sprintf(b, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"m1\"} %d.0\n"
                   "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"m1\"} 0.0\n"
                   "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m1\"} 0.1\n", running);
    return send_document(c, "text/plain; version=0.0.4", b, n);
  }
  n = sprintf(b, "{\"object\":\"list\",\"data\":[{\"id\":\"m1\",\"object\":\"model\",\"created\":1763772000,\"owned_by\":\"vllm\","
                 "\"root\":\"m1\",\"max_model_len\":262144}],\"status\":\"ok\"}");
  return send_document(c, "application/json", b, n);
}

/* ---- requests */

/* The first byte of the value of "name" (quoted, as JSON writes it) in the body, or NULL. Good enough for bodies that we and a
 * proxy under test write: the prompt text contains no such name. */
static const char *field(const char *body, size_t n, const char *name) {
  const char *p = memmem(body, n, name, strlen(name));
  if (!p) return NULL;
  for (p += strlen(name); *p == ' ' || *p == ':'; p++) {}
  return p;
}

static bool is_true(const char *value) { return value && !strncmp(value, "true", 4); }

static int start_stream(Conn *c, const char *body, size_t n) {
  static const char head[] = "HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
                             "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
  const char *total = field(body, n, "\"max_tokens\""), *pace = field(body, n, "\"seed\"");
  if (!total) total = field(body, n, "\"max_completion_tokens\"");
  c->total = total ? atoi(total) : 100;
  if (c->total < 1) c->total = 1;
  c->interval_ns = pace ? strtoull(pace, NULL, 10) * 1000ull : 0;
  c->usage_last = is_true(field(body, n, "\"include_usage\""));
  c->usage_each = c->usage_last && is_true(field(body, n, "\"continuous_usage_stats\""));
  c->sent = -1;
  c->streaming = true;
  running++;
  if (conn_send(c, head, sizeof head - 1)) return -1;
  if (c->interval_ns) {
    c->due_ns = now_ns() + c->interval_ns;
    heap_add(c);
    return 0;
  }
  while (c->streaming)
    if (stream_step(c)) return -1;
  return 0;
}

static int answer(Conn *c, const char *body, size_t n) {
  if (c->in[0] != 'P') return send_get(c);
  const char *model = field(body, n, "\"model\"");
  size_t len = model && *model == '"' ? strcspn(model + 1, "\"") : 0;
  if (len == 0 || len >= sizeof c->model) return -1;
  memcpy(c->model, model + 1, len);
  c->model[len] = 0;
  return is_true(field(body, n, "\"stream\"")) ? start_stream(c, body, n) : send_completion(c);
}

/* Answers the complete requests in the buffer, one at a time. 0, or -1 to close. */
static int serve_input(Conn *c) {
  while (c->in_len > 0 && !c->streaming) {
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end) return c->in_len > 65536 ? -1 : 0;
    *end = 0;
    const char *length = strcasestr(c->in, "\r\ncontent-length:"), *coding = strcasestr(c->in, "\r\ntransfer-encoding:");
    size_t head = (size_t)(end - c->in) + 4, body = length ? strtoull(length + 17, NULL, 10) : 0;
    *end = '\r';
    if (body > REQUEST_BYTES_MAX) return -1;
    if (coding) { /* some proxies re-frame the request; enough for the bodies used here, which never contain this */
      char *last = memmem(c->in + head, c->in_len - head, "\r\n0\r\n\r\n", 7);
      if (!last) return 0;
      body = (size_t)(last + 7 - c->in) - head;
    }
    size_t used = head + body;
    if (c->in_len < used) {
      if (used + 1 > c->in_cap) { c->in_cap = used + 1; c->in = realloc(c->in, c->in_cap); }
      return 0;
    }
    char spare = c->in[used];
    c->in[used] = 0;
    int r = answer(c, c->in + head, body);
    c->in[used] = spare;
    if (r) return -1;
    c->in_len -= used;
    memmove(c->in, c->in + used, c->in_len);
  }
  return 0;
}

static int conn_read(Conn *c) {
  if (c->in_len + 1 >= c->in_cap) {
    if (c->in_cap > REQUEST_BYTES_MAX) return -1;
    c->in_cap *= 2;
    c->in = realloc(c->in, c->in_cap);
  }
  ssize_t r = read(c->fd, c->in + c->in_len, c->in_cap - 1 - c->in_len);
  if (r == 0 || (r < 0 && errno != EAGAIN)) return -1;
  if (r < 0) return 0;
  c->in_len += (size_t)r;
  return serve_input(c);
}

static void accept_all(int listener) {
  for (int i = 0; i < 64; i++) {
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (fd >= FD_MAX) { close(fd); continue; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Conn *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->heap_at = -1;
    c->in_cap = 4096;
    c->in = malloc(c->in_cap);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

static void send_due(void) {
  uint64_t now = now_ns();
  while (heap_len && heap[0]->due_ns <= now) {
    Conn *c = heap[0];
    heap_remove(c);
    if (stream_step(c)) { conn_close(c); continue; }
    if (c->streaming) {
      c->due_ns += c->interval_ns;
      if (c->due_ns < now) c->due_ns = now; /* late by more than one chunk: slip rather than burst */
      heap_add(c);
    } else if (serve_input(c)) {
      conn_close(c);
    }
  }
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t at_len = sizeof at;
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16384)) { perror("mock"); return 1; }
  getsockname(listener, (struct sockaddr *)&at, &at_len);
  printf("port %d\n", ntohs(at.sin_port));
  fflush(stdout);

  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[512];
  epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    struct timespec wait = {0, 0}, *timeout = NULL;
    if (heap_len) {
      uint64_t now = now_ns(), due = (heap[0]->due_ns + TICK_NS - 1) / TICK_NS * TICK_NS;
      uint64_t ns = due > now ? due - now : 0;
      wait = (struct timespec){(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};
      timeout = &wait;
    }
    int n = epoll_pwait2(epoll_fd, events, 512, timeout, NULL);
    for (int i = 0; i < n; i++) {
      Conn *c = events[i].data.ptr;
      if (!c) accept_all(listener);
      else if ((events[i].events & EPOLLOUT) && conn_flush(c)) conn_close(c);
      else if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && conn_read(c)) conn_close(c);
    }
    send_due();
  }
}

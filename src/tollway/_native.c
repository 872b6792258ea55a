/* The hot leaves of the request path, in C. Optional: each has a twin in Python of the same contract, and the tests and the fuzzer hold one
   against the other. All lengths come from the network or from the constructor and are checked against the end of the buffer before a byte
   is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "structmember.h"

#define HEX_DIGITS_MAX 8
#define TOTAL_DIGITS_MAX 20
#define COUNT_DIGITS_MAX 10

static const char COUNT[] = ",\"completion_tokens\":";
static const char END[] = "}}\n\n";

/* ---- EventTemplate: the twin of tollway.wire.event_template.EventTemplate ------------------------------------------------------------ */

typedef struct {
  PyObject_HEAD
  PyObject *before, *after;
  Py_ssize_t kept;
  long long output, output_most, event_bytes, events;
  int hides_usage;
} EventTemplate;

static int template_init(EventTemplate *self, PyObject *args, PyObject *keywords) {
  static char *names[] = {"before", "after", "kept", "output", "output_most", "hides_usage", NULL};
  PyObject *before, *after;
  Py_ssize_t kept;
  long long output, output_most;
  int hides_usage;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "SSnLLp", names, &before, &after, &kept, &output, &output_most, &hides_usage)) return -1;
  const char *first = PyBytes_AS_STRING(before), *last = PyBytes_AS_STRING(after);
  Py_ssize_t first_size = PyBytes_GET_SIZE(before), last_size = PyBytes_GET_SIZE(after);
  if (!first_size || memchr(first, '\n', (size_t)first_size) || memchr(last, '\n', (size_t)last_size) || !last_size || last[0] != '"' ||
      kept <= 0 || kept > last_size) {
    PyErr_SetString(PyExc_ValueError, "not the parts of an event");
    return -1;
  }
  Py_INCREF(before);
  Py_XSETREF(self->before, before);
  Py_INCREF(after);
  Py_XSETREF(self->after, after);
  self->kept = kept;
  self->output = output;
  self->output_most = output_most;
  self->event_bytes = 0;
  self->events = 0;
  self->hides_usage = hides_usage;
  return 0;
}

static void template_dealloc(EventTemplate *self) {
  Py_XDECREF(self->before);
  Py_XDECREF(self->after);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Whether [text, end) is UTF-8 of printable characters. Returns -1 with an exception set if memory is missing. */
static int is_printable(const char *text, const char *end) {
  PyObject *string = PyUnicode_DecodeUTF8(text, end - text, NULL);
  if (string == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return -1;
    PyErr_Clear();
    return 0;
  }
  int printable = 1, kind = PyUnicode_KIND(string);
  const void *characters = PyUnicode_DATA(string);
  Py_ssize_t length = PyUnicode_GET_LENGTH(string);
  for (Py_ssize_t i = 0; i < length && printable; i++) printable = Py_UNICODE_ISPRINTABLE(PyUnicode_READ(kind, characters, i));
  Py_DECREF(string);
  return printable;
}

/* Where the digits that begin at `at` end: a decimal number without leading zero of at most `most` digits. NULL if there is none. */
static const char *digits_end(const char *at, const char *end, int most) {
  const char *p = at;
  while (p < end && *p >= '0' && *p <= '9' && p - at <= most) p++;
  return p == at || p - at > most || *at == '0' ? NULL : p;
}

static char *put_chunk_head(char *out, Py_ssize_t size) {
  static const char HEX[] = "0123456789abcdef";
  int shift = 4 * (HEX_DIGITS_MAX - 1);
  while (shift && !(size >> shift)) shift -= 4;
  for (; shift >= 0; shift -= 4) *out++ = HEX[size >> shift & 15];
  *out++ = '\r';
  *out++ = '\n';
  return out;
}

static PyObject *template_relay(EventTemplate *self, PyObject *data) {
  if (!PyBytes_Check(data) || self->before == NULL) {
    PyErr_SetString(PyExc_TypeError, "relay takes bytes");
    return NULL;
  }
  const char *at = PyBytes_AS_STRING(data), *stop = at + PyBytes_GET_SIZE(data);
  const char *before = PyBytes_AS_STRING(self->before), *after = PyBytes_AS_STRING(self->after);
  Py_ssize_t before_size = PyBytes_GET_SIZE(self->before), after_size = PyBytes_GET_SIZE(self->after);
  long long output = self->output, event_bytes = 0, events = 0;
  if (at == stop) Py_RETURN_NONE;
  /* What is relayed of a chunk is never longer than the chunk: its head has no leading zero and states the event or less. */
  PyObject *relayed = PyBytes_FromStringAndSize(NULL, stop - at);
  if (relayed == NULL) return NULL;
  char *out = PyBytes_AS_STRING(relayed);
  do {
    Py_ssize_t size = 0;
    const char *head = at;
    for (; at < stop && at - head < HEX_DIGITS_MAX; at++) {
      int c = (unsigned char)*at | 0x20; /* lower case; digits stay as they are */
      if (*at >= '0' && *at <= '9') size = size * 16 + (*at - '0');
      else if (c >= 'a' && c <= 'f') size = size * 16 + (c - 'a' + 10);
      else break;
    }
    if (at == head || *head == '0' || stop - at < 4 || size > stop - at - 4 || at[0] != '\r' || at[1] != '\n') goto irregular;
    const char *event = at + 2, *end = event + size;
    if (end[0] != '\r' || end[1] != '\n') goto irregular;
    at = end + 2;
    if (size < before_size || memcmp(event, before, (size_t)before_size)) goto irregular;
    const char *text = event + before_size, *text_end = text;
    while (text_end < end && *text_end >= 0x20 && *text_end < 0x7f && *text_end != '"' && *text_end != '\\') text_end++;
    if (text_end < end && (unsigned char)*text_end >= 0x80) {
      text_end = memchr(text_end, '"', (size_t)(end - text_end));
      if (text_end == NULL || memchr(text, '\\', (size_t)(text_end - text))) goto irregular;
      int printable = is_printable(text, text_end);
      if (printable < 0) goto failed;
      if (!printable) goto irregular;
    }
    if (end - text_end < after_size || memcmp(text_end, after, (size_t)after_size)) goto irregular;
    const char *total = text_end + after_size, *total_end = digits_end(total, end, TOTAL_DIGITS_MAX);
    if (total_end == NULL || end - total_end < (Py_ssize_t)sizeof COUNT - 1 || memcmp(total_end, COUNT, sizeof COUNT - 1)) goto irregular;
    const char *count = total_end + sizeof COUNT - 1, *count_end = digits_end(count, end, COUNT_DIGITS_MAX);
    if (count_end == NULL || end - count_end != (Py_ssize_t)sizeof END - 1 || memcmp(count_end, END, sizeof END - 1)) goto irregular;
    long long counted = 0;
    for (; count < count_end; count++) counted = counted * 10 + (*count - '0');
    if (counted < output || counted > self->output_most || counted - output > size) goto irregular;
    output = counted;
    event_bytes += size;
    events++;
    Py_ssize_t kept = self->hides_usage ? text_end + self->kept - event : size - 3;
    out = put_chunk_head(out, kept + 3);
    memcpy(out, event, (size_t)kept);
    memcpy(out + kept, "}\n\n\r\n", 5);
    out += kept + 5;
  } while (at < stop);
  if (_PyBytes_Resize(&relayed, out - PyBytes_AS_STRING(relayed)) < 0) return NULL;
  self->output = output;
  self->event_bytes = event_bytes;
  self->events += events;
  return relayed;
irregular:
  Py_DECREF(relayed);
  Py_RETURN_NONE;
failed:
  Py_DECREF(relayed);
  return NULL;
}

static PyMemberDef template_members[] = {{"output", T_LONGLONG, offsetof(EventTemplate, output), 0, NULL},
                                         {"event_bytes", T_LONGLONG, offsetof(EventTemplate, event_bytes), 0, NULL},
                                         {"events", T_LONGLONG, offsetof(EventTemplate, events), 0, NULL},
                                         {NULL}};
static PyMethodDef template_methods[] = {{"relay", (PyCFunction)template_relay, METH_O, NULL}, {NULL}};
static PyTypeObject EventTemplateType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "tollway._native.EventTemplate",
    .tp_basicsize = sizeof(EventTemplate),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)template_init,
    .tp_dealloc = (destructor)template_dealloc,
    .tp_methods = template_methods,
    .tp_members = template_members,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "tollway._native", NULL, -1, NULL};

PyMODINIT_FUNC PyInit__native(void) {
  if (PyType_Ready(&EventTemplateType) < 0) return NULL;
  PyObject *made = PyModule_Create(&module);
  if (made && PyModule_AddObjectRef(made, "EventTemplate", (PyObject *)&EventTemplateType) < 0) Py_CLEAR(made);
  return made;
}

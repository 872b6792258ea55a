"""Data plane: requests and their phases (authenticate, authorize, limit, route, relay, meter).

Owns: everything between a client's first byte and the last byte of its answer. Read `pipeline.py` first.
Does not own: where the snapshot comes from, where usage goes, how credentials are kept: those are handed in through `ports.py`.
May import: wire, telemetry, domain, uvloop and httptools. No framework, no SQL, no Redis, not even through another module.

Modules by subject; the order in which they may import each other is a contract in `pyproject.toml`:

- phases: `authenticate`, `authorize`, `limit`, `route`, `meter`, `relay`; `pipeline` runs them, `driver` resumes them, `observe` ends them;
- types of a request: `request`, `principal`, `deadlines`; answers to faults: `refusals`, `blame`;
- who asks, what it may and at which price: `directory`, `tokens`, `certificates`;
- limits: `counters` with `memory_counters` and `shared_counters`; overload of the process: `shedding`, `buffers`;
- budgets: `budgets`, `budget_fallback`, `budget_listing`, `quote`; explanations of access: `inference_access`;
- choice of a deployment: `prefix_routing`, `held_prefixes`, `latency_goals`, `waiting`, `hedging`; of another model: `fallback`;
- large bodies: `uploads`, `body_reader_pool`, `body_reader_process`, `body_reader_messages`;
- stored responses: `conversations`, `continuation`, `background_responses`, `response_queries`;
- answers given again: `answer_recorder` (idempotency keys), `response_cache`; contents: `guardrails`, `content_log`;
- answers without an engine: `queries`, `model_listing`, `model_descriptions`, `files` with `file_operations`;
- traces: `request_traces`, `tracing`; reports to operators: `status`;
- the process: `plane`, `ports`, `background`, `isolation`, `realtime_sessions`;
- packages: `edge` (sockets), `dialects` (one file per API), `media`, `upstreams` (engines), `batches`, `realtime`, `open_inference` (gRPC).
"""

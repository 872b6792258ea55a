"""Events for programs outside: the search for what happens by time alone, webhook endpoints, and the delivery of events to them."""

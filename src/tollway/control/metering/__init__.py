"""From records of gateways to events, amounts and answers about usage."""

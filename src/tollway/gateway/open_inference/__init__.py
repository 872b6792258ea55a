"""The gRPC port: the Open Inference Protocol, on a listener of its own. Nothing of it is imported where it is off."""

"""Records of operations, each in the transaction of the operation, and the chains of these records."""

"""`tollway spool`: a gateway's usage records on disk."""

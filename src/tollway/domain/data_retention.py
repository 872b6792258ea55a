"""Data retention: what an organization and a project let be kept of the content of their requests, in OpenAI's terms."""

from enum import StrEnum

import msgspec


class RetentionType(StrEnum):
    """Bound on what is kept of the content of requests. The enhanced types are OpenAI's; here they mean what those without the word do."""

    ORGANIZATION_DEFAULT = "organization_default"
    """The type of the organization, for a project."""
    NONE = "none"
    """No restriction, for a project: its content can be logged."""
    ZERO = "zero_data_retention"
    """Nothing is kept: no log of content, no stored responses."""
    MODIFIED = "modified_abuse_monitoring"
    """Content is not logged. Responses are stored where the organization stores them and a request asks for it."""
    ENHANCED_ZERO = "enhanced_zero_data_retention"
    ENHANCED_MODIFIED = "enhanced_modified_abuse_monitoring"

    @property
    def is_zero(self) -> bool:
        """Return whether nothing may be kept."""
        return self in (RetentionType.ZERO, RetentionType.ENHANCED_ZERO)


OF_PROJECT_ONLY = frozenset({RetentionType.ORGANIZATION_DEFAULT, RetentionType.NONE})
"""Types that an organization itself cannot have."""

CONTENT_RETENTION_SECONDS_MAX = 366 * 86_400
"""Longest time for which logged content is kept."""


class ProjectRetention(msgspec.Struct, frozen=True, kw_only=True):
    """Data retention of a project. `content_retention_seconds`: how long the content of its requests is logged, 1 to
    CONTENT_RETENTION_SECONDS_MAX; None logs none, as each project does that says nothing."""

    type: RetentionType = RetentionType.ORGANIZATION_DEFAULT
    content_retention_seconds: int | None = None

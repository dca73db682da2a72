"""Which gateway processes are there, so that nobody is called offline for our own absence."""

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from app.kernel.db import Base
from app.kernel.types import Name, UtcDateTime


class Presence(Base):
    """A gateway process that is, or was, there."""

    __tablename__ = "gateway_presence"

    name: Mapped[str] = mapped_column(Name(128), primary_key=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

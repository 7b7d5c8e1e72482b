"""Log lines for the journal: one JSON object each, whatever a message holds."""

import json
import logging
import os


class Line(logging.Formatter):
    """level, logger, message, and the request's status and path or the traceback where there is one."""

    def format(self, record):
        line = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if hasattr(record, "status_code"):
            line["status"] = record.status_code
        request = getattr(record, "request", None)
        if hasattr(request, "path"):
            line.update(method=request.method, path=request.path)
            line["request_id"] = request.headers.get("X-Request-ID", "")
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line["release"] = os.environ.get("SITE_RELEASE", "")
        return json.dumps(line, ensure_ascii=False, default=str)

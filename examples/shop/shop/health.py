"""Two questions a load balancer asks: is the process alive, and can it serve."""

from django.conf import settings
from django.db import Error, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache


@never_cache
def healthz(request: HttpRequest) -> JsonResponse:
    """Alive: touches nothing outside the process, so a broken database does not restart it."""
    return JsonResponse({"status": "ok", "release": settings.SITE_RELEASE})


@never_cache
def readyz(request: HttpRequest) -> JsonResponse:
    """Ready: one round trip to the database; 503 with the kind of error when it fails."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()
    except Error as error:
        return JsonResponse(
            {
                "status": "unavailable",
                "reason": f"database: {type(error).__name__}",
                "release": settings.SITE_RELEASE,
            },
            status=503,
        )
    return JsonResponse({"status": "ok", "release": settings.SITE_RELEASE})

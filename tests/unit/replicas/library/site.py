"""What the project answers: whatever a test has put into `answer`."""

from asgiref.sync import iscoroutinefunction
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

from library.models import Book

answer = None


class OwnRouter:
    homes = {"ledger": "default", "scan": "scans"}

    def db_for_read(self, model, **hints):
        return self.homes.get(model._meta.model_name)

    db_for_write = db_for_read


def response_of(found):
    return found if isinstance(found, HttpResponse | StreamingHttpResponse) else HttpResponse(str(found))


def view(request):
    return response_of(answer(request))


async def async_view(request):
    return response_of(await answer(request))


@sync_and_async_middleware
def write_at_the_end(get_response):
    """A middleware of the project that writes when the view is done."""
    if iscoroutinefunction(get_response):

        async def respond(request):
            response = await get_response(request)
            if "X-Write" in request.headers:
                await Book.objects.acreate(title="written at the end")
            return response
    else:

        def respond(request):
            response = get_response(request)
            if "X-Write" in request.headers:
                Book.objects.create(title="written at the end")
            return response

    return respond


urlpatterns = [path("", view), path("async", async_view)]

import os

from django.http import HttpRequest, HttpResponse
from django.urls import path
from ours import WORD

from notes.models import Note


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{os.environ['SITE_RELEASE']} {WORD} {Note.objects.count()} notes")


urlpatterns = [path("", page)]

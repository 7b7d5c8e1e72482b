from importlib import import_module

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.models import Permission
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Print the key of a session whose user may upload photos and nothing else, for tests with traffic."

    def handle(self, *args: object, **options: object) -> None:
        user, made = get_user_model().objects.get_or_create(username="traffic")
        if made:
            user.set_unusable_password()
            user.save()
        user.user_permissions.set(Permission.objects.filter(codename="change_product"))
        session = import_module(settings.SESSION_ENGINE).SessionStore()
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        self.stdout.write(session.session_key)

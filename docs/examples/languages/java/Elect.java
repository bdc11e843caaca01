import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.regex.Pattern;

/**
 * Works while the agent of this pod holds the lock. Each unit of work is a PUT to URL, with the fencing token.
 *
 *     java Elect.java URL
 */
public class Elect {
    static final String AGENT = System.getenv().getOrDefault("LEASEHOLD_AGENT", "http://127.0.0.1:4040");
    /** No unit of work takes longer. */
    static final Duration UNIT = Duration.ofMillis(500);
    static final HttpClient HTTP = HttpClient.newHttpClient();
    static volatile boolean held;

    /** Wakes the work when the lock is acquired, and ends it when it is lost. */
    static void follow() {
        while (true) {
            try {
                var request = HttpRequest.newBuilder(URI.create(AGENT + "/v1/events")).build();
                HTTP.send(request, BodyHandlers.ofLines()).body().forEach(line -> {
                    switch (line) {
                        case "event: acquired", "event: jeopardy", "event: safe" -> held = true;
                        case "event: lost", "event: waiting" -> held = false;
                        default -> { }
                    }
                });
            } catch (Exception error) {
                System.err.println(error);
            }
            held = false;
            sleep(1000);
        }
    }

    static long number(String json, String field) {
        var found = Pattern.compile("\"" + field + "\":(\\d+)").matcher(json);
        return found.find() ? Long.parseLong(found.group(1)) : 0;
    }

    /** Asks whether there is time for a unit of work, and does it. */
    static boolean workOnce(URI url) throws IOException, InterruptedException {
        long asked = System.nanoTime();
        var ask = HttpRequest.newBuilder(URI.create(AGENT + "/v1/hold")).timeout(Duration.ofSeconds(1)).build();
        var hold = HTTP.send(ask, BodyHandlers.ofString()).body();
        long passed = (System.nanoTime() - asked) / 1_000_000;
        if (number(hold, "stopInMilliseconds") - passed <= UNIT.toMillis()) {
            return false;
        }
        var put = HttpRequest.newBuilder(url).timeout(UNIT).PUT(BodyPublishers.ofString("worked"))
            .header("Fencing-Token", Long.toString(number(hold, "fencingToken"))).build();
        int code = HTTP.send(put, BodyHandlers.discarding()).statusCode();
        if (code != 200) {
            System.err.println("refused: " + code);
        }
        return true;
    }

    public static void main(String[] args) {
        var follower = new Thread(Elect::follow);
        follower.setDaemon(true);
        follower.start();
        while (true) {
            try {
                if (!held || !workOnce(URI.create(args[0]))) {
                    sleep(100);
                }
            } catch (IOException | InterruptedException error) {
                System.err.println(error);
                sleep(100);
            }
        }
    }

    static void sleep(long milliseconds) {
        try {
            Thread.sleep(milliseconds);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }
}

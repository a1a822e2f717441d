package tfspark.tfrecord

import java.io.IOException

/**
 * Says what is wrong with the bytes of one record. The caller that knows the file and the offset adds them. This
 * exception never leaves a task.
 */
final class RecordFault(message: String) extends RuntimeException(message, null, false, false)

/**
 * Errors that may leave a task: they consist of classes that every JVM knows.
 *
 * The driver deserializes the exceptions of a task, but its class loader does not know the classes of a jar that was
 * added to a running session. For such classes, Spark reports `UnknownReason` instead of the error.
 */
object Errors {

  /** Returns an error for a file or a record that cannot be read or written; the message names it. */
  def of(message: String, cause: Throwable = null): IOException = new IOException(message, known(cause))

  /** Returns the message of an exception, or its class name if it has none. */
  def reason(e: Throwable): String = Option(e.getMessage).filter(_.nonEmpty).getOrElse(e.getClass.getSimpleName)

  /** Returns the cause if it, its causes and its suppressed exceptions are all classes of Java, else null. */
  private def known(cause: Throwable): Throwable = {
    def isJava(e: Throwable): Boolean =
      e == null || (e.getClass.getName.startsWith("java.") && isJava(e.getCause) && e.getSuppressed.forall(isJava))
    if (isJava(cause)) cause else null
  }
}
